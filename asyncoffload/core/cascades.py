"""Cascades: which ready blocks are copied to which secondary tier, and when.

Write-through offers a block when its store completes. A tier takes a bounded number of blocks at a time; what is over
the bound is shed, stays dirty, and is offered again: when the tier has room, in the order in which it was shed, and
when it nears eviction. So shedding is deferral while the block lives, and loss only when it is evicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncoffload.core.block_table import BlockTable
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status


@dataclass(slots=True)
class _Outlet:
    """What one tier takes.

    Attributes:
        waiting: blocks offered and not handed out yet, with their pinned slots.
        shed_keys: blocks that it had no room for, to be offered again.
        in_flight: blocks offered or handed out; no block is twice.
        walk_due: it is its turn to have the cold tail walked for it.
        walk_cut_short: the last walk found more than there was room for.
        refuses: of the last batch it took nothing; it is offered nothing again before it takes something.
        stored, failed: counts of blocks.
        over_limit, refused, dropped: counts of blocks that were shed: because too many were in flight, by the tier,
            and because offers were taken back.
    """

    shed_keys: deque[OffloadKey]
    waiting: list[tuple[OffloadKey, int]] = field(default_factory=list)
    in_flight: set[OffloadKey] = field(default_factory=set)
    walk_due: bool = False
    walk_cut_short: bool = False
    refuses: bool = False
    stored: int = 0
    failed: int = 0
    over_limit: int = 0
    refused: int = 0
    dropped: int = 0

    @property
    def shed(self) -> int:
        """Blocks that were put off, whatever the reason."""
        return self.over_limit + self.refused + self.dropped


class Cascades:
    """The write side of the tiers.

    Args:
        table: the primary; a block in flight to a tier is pinned in it.
        n_tiers: how many tiers there are.
        limit: blocks that may be offered or in flight per tier.
        window: how many of the coldest blocks the cleaner looks at.
    """

    def __init__(self, table: BlockTable, n_tiers: int, *, limit: int, window: int) -> None:
        self._table = table
        self._limit = limit
        self._window = window
        self._outlets = [_Outlet(deque(maxlen=table.n_slots)) for _ in range(n_tiers)]
        self._last_walk = self._pressure
        self._closed = False

    def offer(self, keys: Sequence[OffloadKey]) -> None:
        """Offer newly stored blocks to every tier; what a tier has no room for is shed."""
        for tier, outlet in enumerate(self._outlets):
            taken = self._offer_to(tier, keys)
            outlet.over_limit += len(keys) - taken
            outlet.shed_keys.extend(keys[taken:])

    def offer_again(self) -> None:
        """Offer what was shed to tiers with room, and the cold tail if enough slots were taken since its last walk."""
        if self._closed:
            return
        walk_due = self._walk_due
        if walk_due:
            self._last_walk = self._pressure
        for tier, outlet in enumerate(self._outlets):
            outlet.walk_due = outlet.walk_due or walk_due
            while self._can_offer_again(outlet) and (room := self._room(outlet)):
                again = [outlet.shed_keys.popleft() for _ in range(min(room, len(outlet.shed_keys)))]
                dirty = self._table.dirty_among(again, tier)
                self._offer_to(tier, [key for key in dirty if key not in outlet.in_flight])
            room = self._room(outlet)
            if outlet.walk_due and room:
                dirty = self._table.dirty(self._window, tier)
                outlet.walk_due, outlet.walk_cut_short = False, len(dirty) > room
                self._offer_to(tier, dirty)

    @property
    def _pressure(self) -> int:
        """Grows with every slot that is taken."""
        return self._table.evicted - self._table.free

    @property
    def _walk_due(self) -> bool:
        return self._table.free < self._window and self._pressure - self._last_walk >= max(1, self._window // 2)

    def _room(self, outlet: _Outlet) -> int:
        return 0 if self._closed else max(0, self._limit - len(outlet.in_flight))

    def _can_offer_again(self, outlet: _Outlet) -> bool:
        return bool(outlet.shed_keys) and not outlet.refuses and self._limit > 0

    def _offer_to(self, tier: int, keys: Sequence[OffloadKey]) -> int:
        """Take as many of the keys as there is room for; returns how many."""
        outlet = self._outlets[tier]
        taken = keys[: self._room(outlet)]
        if taken:
            outlet.in_flight.update(taken)
            outlet.waiting.extend(zip(taken, map(int, self._table.pin(taken)), strict=True))
        return len(taken)

    def take(self, batch: int) -> tuple[int, list[OffloadKey], list[int]] | None:
        """What to hand to a tier next: the tier, at most ``batch`` keys, and their pinned slots."""
        for tier, outlet in enumerate(self._outlets):
            if outlet.waiting:
                taken, outlet.waiting[:batch] = outlet.waiting[:batch], []
                return tier, [key for key, _ in taken], [slot for _, slot in taken]
        return None

    def settle(self, tier: int, keys: Sequence[OffloadKey], slots: Sequence[int], statuses: Sequence[Status]) -> None:
        """A batch has ended: unpin it and mark clean what arrived."""
        outlet = self._outlets[tier]
        outlet.in_flight.difference_update(keys)
        arrived = [key for key, status in zip(keys, statuses, strict=True) if status is Status.DONE]
        self._table.mark_clean(arrived, tier)
        self._table.unpin(slots)
        shed = [key for key, status in zip(keys, statuses, strict=True) if status is Status.SHED]
        cancelled = sum(status is Status.CANCELLED for status in statuses)
        outlet.refuses = not arrived
        outlet.walk_due = outlet.walk_due or (outlet.walk_cut_short and bool(arrived))
        outlet.shed_keys.extend(shed)
        outlet.stored += len(arrived)
        outlet.refused += len(shed)
        outlet.dropped += cancelled
        outlet.failed += len(keys) - len(arrived) - len(shed) - cancelled

    def drop(self) -> None:
        """Take back the offers that were not handed out yet."""
        for outlet in self._outlets:
            outlet.in_flight.difference_update(key for key, _ in outlet.waiting)
            outlet.dropped += len(outlet.waiting)
            self._table.unpin([slot for _, slot in outlet.waiting])
            outlet.waiting.clear()
            outlet.shed_keys.clear()

    def close(self) -> None:
        """Take no more offers."""
        self._closed = True

    @property
    def startable(self) -> bool:
        """Whether something waits to be handed out, or to be offered again."""
        if self._closed or not self._outlets:
            return False
        return self._walk_due or any(
            outlet.waiting or outlet.walk_due or self._can_offer_again(outlet) for outlet in self._outlets
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, nor about to be offered again."""
        again = not self._closed and any(map(self._can_offer_again, self._outlets))
        return not again and not any(outlet.in_flight for outlet in self._outlets)

    def counts(self, tier: int) -> dict[str, int]:
        """Blocks in flight, stored, shed and failed so far."""
        outlet = self._outlets[tier]
        counts = {name: getattr(outlet, name) for name in ("stored", "shed", "failed")}
        return {"in_flight": len(outlet.in_flight), **counts}

    def shed_counts(self, tier: int) -> dict[str, int]:
        """Blocks shed so far, by what they ran into: the bound on blocks in flight (``cascade_blocks``), the ``tier``
        itself, or that offers were taken back (``dropped``)."""
        outlet = self._outlets[tier]
        return {"cascade_blocks": outlet.over_limit, "tier": outlet.refused, "dropped": outlet.dropped}
