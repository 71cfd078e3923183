"""The lease of a load over tiers: its prefix may still grow while it is open."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from asyncoffload.core.primary import slots_spec
from asyncoffload.core.tickets import PRIMARY, Ticket
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.leases import LoadLease, LoadPart
from asyncoffload.types import CPULoadStoreSpec, Status


class TieredLoadLease(LoadLease):
    """Blocks that can be read: the prefix that has been secured so far.

    Entered without ``streaming``, that is all there will be. With it the prefix grows while :meth:`parts` waits.

    Args:
        keys: the keys that were asked for.
        ticket: the planner's account of them.
        names: the tiers' names, by index.
        moved: waits until the ticket has moved.
    """

    def __init__(
        self, keys: Sequence[OffloadKey], ticket: Ticket, names: Sequence[str], moved: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(keys, slots_spec(()))
        self._ticket = ticket
        self._names = names
        self._moved = moved

    @property
    def keys(self) -> Sequence[OffloadKey]:
        """The prefix that is held; it ends before the first block that was missing, corrupt, late or shed."""
        self._check_open()
        return self._keys[: self._ticket.pos]

    @property
    def spec(self) -> CPULoadStoreSpec:
        """The slot of each block, in the order of :attr:`keys`."""
        self._check_open()
        return slots_spec(self._ticket.slots[: self._ticket.pos])

    @property
    def by_tier(self) -> Mapping[str, int]:
        """How many of the blocks came from where: ``"CPU"`` for those that were in the primary already."""
        self._check_open()
        counts = Counter(self._ticket.sources[: self._ticket.pos])
        return {
            CPULoadStoreSpec.medium() if source == PRIMARY else self._names[source]: n for source, n in counts.items()
        }

    @property
    def stopped_by(self) -> Status | None:
        """Why the prefix ends before the last key; None while it may still reach it, and when it has."""
        self._check_open()
        return self._ticket.stopped_by

    async def parts(self) -> AsyncIterator[LoadPart]:
        """The blocks in key order, as they arrive; ends where the prefix ends.

        Cancellation, also by the deadline, leaves what has arrived in the lease.
        """
        start = 0
        while True:
            self._check_open()
            end = self._ticket.pos
            if end > start:
                yield LoadPart(self._keys[start:end], slots_spec(self._ticket.slots[start:end]))
                start = end
            elif self._ticket.done:
                return
            else:
                await self._moved()
