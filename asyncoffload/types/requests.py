"""On whose behalf a call is made."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from asyncoffload.errors import InvalidArgument
from asyncoffload.types.vocabulary import Priority


@dataclass(frozen=True, slots=True)
class RequestContext:
    """On whose behalf a call is made.

    Attributes:
        request_id: a name for logs and statistics.
        priority: how urgent the work behind the call is.
        deadline: seconds of ``time.monotonic()`` after which the caller no longer wants to wait; None: no limit.
            Finite, also where it has passed.
        namespace: blocks of different namespaces never meet; folded into the keys where they enter.
        tiers: names of the secondary tiers that may serve the call; None: all of them.
        depth: how many blocks of the request come before the first of the call's keys. Tiers that evict lose the end
            of a prefix first.

    Raises:
        InvalidArgument: the deadline is no time.
    """

    request_id: str = ""
    priority: Priority = Priority.DEMAND
    deadline: float | None = None
    namespace: str = ""
    tiers: frozenset[str] | None = None
    depth: int = 0

    def __post_init__(self) -> None:
        if self.deadline is not None and not _is_a_time(self.deadline):
            raise InvalidArgument(
                f"deadline is {self.deadline!r}: pass seconds of time.monotonic(), or None for no limit"
            )


def _is_a_time(deadline: float) -> bool:
    try:
        return isfinite(deadline)
    except (TypeError, OverflowError):
        return False


ANONYMOUS = RequestContext()
