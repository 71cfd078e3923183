"""On whose behalf a call is made."""

from __future__ import annotations

from dataclasses import dataclass

from asyncoffload.types.vocabulary import Priority


@dataclass(frozen=True, slots=True)
class RequestContext:
    """On whose behalf a call is made.

    Attributes:
        request_id: a name for logs and statistics.
        priority: how urgent the work behind the call is.
        deadline: seconds of ``time.monotonic()`` after which the caller no longer wants to wait; None: no limit.
        namespace: blocks of different namespaces never meet; folded into the keys where they enter.
        tiers: names of the secondary tiers that may serve the call; None: all of them.
        depth: how many blocks of the request come before the first of the call's keys. Tiers that evict lose the end
            of a prefix first.
    """

    request_id: str = ""
    priority: Priority = Priority.DEMAND
    deadline: float | None = None
    namespace: str = ""
    tiers: frozenset[str] | None = None
    depth: int = 0


ANONYMOUS = RequestContext()
