"""Probes: which tier is asked for a block next, and what the tiers refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from asyncoffload.core.tickets import Fetch, FetchState
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status

Hint = Callable[[OffloadKey], bool]


class Probes:
    """Asks the tiers in their order; one that believes it has the block is believed, and saves a probe.

    Args:
        hints: one per tier, fastest tier first: "I believe I have it", without I/O.

    Attributes:
        refusals: per tier, how often it could not give a block, and why.
    """

    def __init__(self, hints: Sequence[Hint]) -> None:
        self._hints = tuple(hints)
        self._pending: list[list[Fetch]] = [[] for _ in hints]
        self.refusals: list[dict[Status, int]] = [{} for _ in hints]

    def seek(self, fetch: Fetch, tiers: int) -> None:
        """Find the block in one of the tiers of a non-empty bit set, or ask the first of them for it."""
        for tier, hint in enumerate(self._hints):
            if tiers >> tier & 1 and hint(fetch.key):
                fetch.state, fetch.tier = FetchState.FOUND, tier
                return
        fetch.state, fetch.tier = FetchState.PROBING, (tiers & -tiers).bit_length() - 1
        self._pending[fetch.tier].append(fetch)

    def take(self, batch: int) -> Iterator[tuple[int, list[Fetch]]]:
        """What to ask now: a tier, and at most ``batch`` fetches that somebody still wants probed."""
        for tier, pending in enumerate(self._pending):
            while pending:
                asked, pending[:batch] = pending[:batch], []
                wanted = [fetch for fetch in asked if fetch.state is FetchState.PROBING and fetch.waiters]
                if wanted:
                    yield tier, wanted

    def refuse(self, fetch: Fetch, tier: int, cause: Status) -> None:
        """A tier could not give the block."""
        fetch.refuse(tier, cause)
        self.refusals[tier][cause] = self.refusals[tier].get(cause, 0) + 1

    def __len__(self) -> int:
        return sum(map(len, self._pending))
