"""Cascades: which ready blocks are copied to which secondary tier, and when.

Write-through offers a block when its store completes. A tier takes a bounded number of blocks at a time; what is over
the bound is shed, stays dirty, and is offered again when it nears eviction, so that shedding is deferral while the
block lives and loss only when it is evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncoffload.core.block_table import BlockTable
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status


@dataclass(slots=True)
class _Outlet:
    """What one tier takes: blocks offered and not handed out yet, how many are in flight in all, whether it is its
    turn to have the cold tail walked for it, and whether the last walk found more than it could take."""

    waiting: list[tuple[OffloadKey, int]] = field(default_factory=list)
    in_flight: int = 0
    stored: int = 0
    shed: int = 0
    failed: int = 0
    due: bool = False
    backlog: bool = False


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
        self._outlets = [_Outlet() for _ in range(n_tiers)]
        self._last_walk = self._pressure
        self._closed = False

    def offer(self, keys: Sequence[OffloadKey]) -> None:
        """Offer newly stored blocks to every tier; what a tier has no room for is shed."""
        for tier in range(len(self._outlets)):
            self._offer_to(tier, keys)

    def clean(self) -> None:
        """Offer dirty blocks of the cold tail again, once enough slots were taken since the last walk over it."""
        pressure = self._pressure
        if self._table.free < self._window and pressure - self._last_walk >= max(1, self._window // 2):
            self._last_walk = pressure
            for outlet in self._outlets:
                outlet.due = True
        for tier, outlet in enumerate(self._outlets):
            room = self._limit - outlet.in_flight
            if outlet.due and room > 0:
                dirty = self._table.dirty(self._window, tier)
                outlet.due, outlet.backlog = False, len(dirty) > room
                self._offer_to(tier, dirty[:room])

    @property
    def _pressure(self) -> int:
        """Grows with every slot that is taken."""
        return self._table.evicted - self._table.free

    def _offer_to(self, tier: int, keys: Sequence[OffloadKey]) -> None:
        outlet = self._outlets[tier]
        room = 0 if self._closed else max(0, self._limit - outlet.in_flight)
        taken = keys[:room]
        outlet.shed += len(keys) - len(taken)
        if taken:
            outlet.in_flight += len(taken)
            outlet.waiting.extend(zip(taken, map(int, self._table.pin(taken)), strict=True))

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
        outlet.in_flight -= len(keys)
        arrived = [key for key, status in zip(keys, statuses, strict=True) if status is Status.DONE]
        self._table.mark_clean(arrived, tier)
        self._table.unpin(slots)
        shed = sum(status in (Status.SHED, Status.CANCELLED) for status in statuses)
        outlet.stored += len(arrived)
        # A tier that takes nothing at present is not offered the same blocks at once again.
        outlet.due = outlet.due or (outlet.backlog and bool(arrived))
        outlet.shed += shed
        outlet.failed += len(keys) - len(arrived) - shed

    def drop(self) -> None:
        """Take back the offers that were not handed out yet."""
        for outlet in self._outlets:
            outlet.in_flight -= len(outlet.waiting)
            outlet.shed += len(outlet.waiting)
            self._table.unpin([slot for _, slot in outlet.waiting])
            outlet.waiting.clear()

    def close(self) -> None:
        """Take no more offers."""
        self._closed = True

    @property
    def idle(self) -> bool:
        """Whether nothing is offered or in flight."""
        return not any(outlet.in_flight for outlet in self._outlets)

    def counts(self, tier: int) -> dict[str, int]:
        """Blocks in flight, stored, shed and failed so far."""
        outlet = self._outlets[tier]
        return {name: getattr(outlet, name) for name in ("in_flight", "stored", "shed", "failed")}
