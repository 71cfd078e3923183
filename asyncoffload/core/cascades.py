"""Cascades: which ready blocks are copied to which secondary tier, and when.

Write-through offers a block to every tier when its store completes; demotion does not. Under both a cleaner looks over
the cold tail again and again, and offers what is dirty there, so that eviction finds clean victims. A tier takes a
bounded number of blocks at a time. What it has no room for, or sheds, waits in its line while the block lives; what is
dirty when it is evicted is lost, or is not evicted, as the table was told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.cleaning import BatchWindow, CleanWindow
from asyncoffload.core.outlets import Outlet
from asyncoffload.core.pledges import Part, Pledge
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s, Status, WritePolicy


class Cascades:
    """The write side of the tiers.

    Args:
        table: the primary; a block in flight to a tier is pinned in it.
        hints: one per tier: "I believe I have it". A dirty block that a tier has is clean, and not written again.
        policy: when blocks are offered.
        limit: blocks that may be offered or in flight per tier.
        window: how many of the coldest blocks the cleaner looks at, or at least looks at.
    """

    def __init__(
        self,
        table: BlockTable,
        hints: Sequence[Callable[[OffloadKey], bool]],
        *,
        policy: WritePolicy,
        limit: int,
        window: int,
    ) -> None:
        self._table = table
        self._hints = tuple(hints)
        self._through = policy == "write_through"
        self._limit = limit
        self._window = CleanWindow(table, window) if self._through else BatchWindow(table, window)
        self._outlets = [Outlet(table.n_slots) for _ in hints]
        self._pledges: list[Pledge] = []
        self._wanted = 0  # slots that somebody needs and cannot have, where dirty blocks stay
        self._seen: tuple[int, ...] | None = None  # what there was when victims were last looked for
        self._least_dirty = 0  # the least number of dirty blocks when they were, while nothing else had changed
        self._closed = not hints

    def offer(self, keys: Sequence[OffloadKey]) -> list[tuple[int, Sequence[OffloadKey]]]:
        """Blocks were stored: write-through offers them to every tier; what a tier has no room for is shed.

        Returns:
            The tiers that had no room, and the blocks that each of them shed.
        """
        shed: list[tuple[int, Sequence[OffloadKey]]] = []
        if not self._through:
            return shed
        for tier, outlet in enumerate(self._outlets):
            taken = self._offer_to(tier, keys)
            outlet.over_limit += len(keys) - taken
            if taken < len(keys):
                outlet.put_off.extend(keys[taken:])
                shed.append((tier, keys[taken:]))
        return shed

    def offer_again(self) -> None:
        """Look over the cold tail if that is due, and offer what is in line to tiers with room."""
        if not self._closed:
            if self._window.due():
                self._look_over(self._table.cold.coldest(self._window.blocks))
            if self._is_short():
                self._seek_victims()
            for tier, outlet in enumerate(self._outlets):
                self._serve(tier, outlet)
        self._follow_pledges()

    def flush(self) -> None:
        """Offer every ready block to every tier that has no copy of it, coldest first."""
        for outlet, dirty in zip(self._outlets, self._all_dirty(), strict=True):
            outlet.put_off.extend(dirty)

    def pledge(self) -> Pledge:
        """What is in line or in flight now; what comes later is no part of it. To be released."""
        self.offer_again()
        idle = self.idle
        return self._begin([() if idle else (*outlet.cold, *outlet.put_off) for outlet in self._outlets])

    def pledge_flush(self, before: Pledge | None = None) -> Pledge:
        """As :meth:`flush`, for who waits until that, and all that is in flight now, has ended. To be released.

        Args:
            before: flush only what is left of this one.
        """
        dirty = self._all_dirty()
        if before is not None:
            dirty = [
                list(filter(set(part.flushed).__contains__, keys))
                for part, keys in zip(before.parts, dirty, strict=True)
            ]
        return self._begin(dirty, flushed=True)

    def may_take_more(self, pledge: Pledge) -> bool:
        """Whether a tier has shed a part of what was flushed, so that it may take it later."""
        return any(
            part.shed and 0 < len(self._table.dirty_among(part.flushed, tier)) < len(part.flushed)
            for tier, part in enumerate(pledge.parts)
        )

    def release(self, pledge: Pledge) -> None:
        """Nobody waits for a pledge any more; what it has in line remains there."""
        if not pledge.over:
            self._end(pledge)

    def make_room(self, slots: int, *, insist: bool = False) -> bool:
        """Somebody cannot have so many slots: look for blocks that are victims once they are clean, and offer them.

        Args:
            slots: how many are wanted in all.
            insist: offer them also to tiers that took nothing of late.

        Returns:
            Whether something was looked over, so that to try again is not in vain.
        """
        if not self._table.keeps_dirty or self._closed or slots > self._table.n_slots:
            return False
        if insist and not self.busy and any(outlet.refuses for outlet in self._outlets):
            self.forgive()
        self._wanted = max(self._wanted, slots)
        looks = self._is_short()
        self.offer_again()
        return looks

    def may_make_room(self, slots: int) -> bool:
        """Whether so many slots may ever be had, though the tiers are as they are.

        Otherwise they would have to come from dirty blocks that no tier takes, or not without giving up others.
        """
        table = self._table
        if self.busy or table.n_slots - table.n_dirty >= slots:
            return True
        if self._closed or self._limit <= 0 or not any(outlet.willing for outlet in self._outlets):
            return False
        return table.pinned > 0 or bool(table.writing) or self._is_short()

    def forgive(self) -> None:
        """Offer blocks again to tiers that took nothing of late."""
        self._seen = None
        for outlet in self._outlets:
            outlet.refuses = False

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
        self._table.end_copies(slots, tier)
        shed = [key for key, status in zip(keys, statuses, strict=True) if status is Status.SHED]
        cancelled = sum(status is Status.CANCELLED for status in statuses)
        outlet.refuses = not arrived
        self._put_off(outlet, shed)
        for part in outlet.parts:
            part.landed(keys, shed)
        outlet.stored += len(arrived)
        outlet.refused += len(shed)
        outlet.dropped += cancelled
        outlet.failed += len(keys) - len(arrived) - len(shed) - cancelled

    def drop(self) -> None:
        """Take back the offers that were not handed out yet."""
        for tier, outlet in enumerate(self._outlets):
            recalled = [key for key, _ in outlet.waiting]
            outlet.in_flight.difference_update(recalled)
            for part in outlet.parts:
                part.landed(recalled)
            outlet.dropped += len(outlet.waiting)
            self._table.end_copies([slot for _, slot in outlet.waiting], tier)
            outlet.waiting.clear()
            outlet.clear()

    def close(self) -> None:
        """Take no more offers."""
        self._closed = True

    @property
    def startable(self) -> bool:
        """Whether something waits to be handed out, or to be offered."""
        return any(outlet.waiting for outlet in self._outlets) or self._offers_wait

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, nor about to be offered."""
        return not self.busy and not self._offers_wait

    @property
    def busy(self) -> bool:
        """Whether something is in flight."""
        return any(outlet.in_flight for outlet in self._outlets)

    @property
    def _offers_wait(self) -> bool:
        if self._closed or self._limit <= 0:
            return False
        waiting = any(outlet.willing and outlet.in_line for outlet in self._outlets)
        return self._window.due() or waiting or self._is_short()

    # ---- the cold tail

    def _look_over(self, slots: Int32s) -> None:
        """Put what is dirty in these slots in line."""
        self._window.looked()
        for tier, outlet in enumerate(self._outlets):
            outlet.cold = deque(self._dirty(slots, tier))  # some of what was in it may have been used since
            outlet.another_chance = bool(outlet.cold)

    def _dirty(self, slots: Int32s, tier: int) -> list[OffloadKey]:
        """The blocks in these slots that a tier has to be given, as far as it does not say that it has them."""
        dirty = self._table.dirty(slots, tier)
        known = set(filter(self._hints[tier], dirty))
        if not known:
            return dirty
        self._table.mark_clean(known, tier)
        return [key for key in dirty if key not in known]

    def _is_short(self) -> bool:
        """Whether somebody still wants slots, and victims may be found that were not there the last time."""
        if not self._wanted or self.busy:
            return False
        if self._wanted <= self._table.available or not any(outlet.willing for outlet in self._outlets):
            self._wanted = 0
        return self._wanted > 0 and (self._seen != self._state or self._table.n_dirty < self._least_dirty)

    def _seek_victims(self) -> None:
        self._look_over(self._table.cold.coldest(max(self._wanted, self._window.blocks)))
        dirty, known = self._table.n_dirty, self._seen == self._state
        self._least_dirty = min(self._least_dirty, dirty) if known else dirty
        self._seen = self._state

    @property
    def _state(self) -> tuple[int, ...]:
        table = self._table
        return self._wanted, table.pinned, len(table.ready), table.evicted

    # ---- offers

    def _serve(self, tier: int, outlet: Outlet) -> None:
        """Offer what waits for a tier as far as it has room."""
        while room := self._room(outlet):
            again, part = outlet.next_in_line(room)
            if not again:
                break
            self._offer_to(tier, self._table.dirty_among(again, tier))
            if part is not None:
                part.offered(again, outlet.in_flight)
        outlet.another_chance = False

    def _room(self, outlet: Outlet) -> int:
        return 0 if self._closed else max(0, self._limit - len(outlet.in_flight))

    def _offer_to(self, tier: int, keys: Sequence[OffloadKey]) -> int:
        """Take as many of the keys as there is room for; returns how many."""
        outlet = self._outlets[tier]
        taken = keys[: self._room(outlet)]
        if taken:
            outlet.in_flight.update(taken)
            outlet.waiting.extend(zip(taken, self._table.begin_copies(taken, tier), strict=True))
        return len(taken)

    def _put_off(self, outlet: Outlet, keys: Sequence[OffloadKey]) -> None:
        """A tier has shed these: it may take them later, after others, or before what is not as cold."""
        if self._through:
            outlet.put_off.extend(keys)
        else:
            outlet.cold.extendleft(reversed(keys))

    # ---- pledges

    def _all_dirty(self) -> list[list[OffloadKey]]:
        """By tier, all that has to be written, coldest first; tiers that took nothing of late may be offered it."""
        if self._closed:
            return [[] for _ in self._outlets]
        self._window.looked()
        dirty = [self._dirty(self._table.cold.everything(), tier) for tier in range(len(self._outlets))]
        for outlet, keys in zip(self._outlets, dirty, strict=True):
            outlet.refuses = outlet.refuses and not keys
        return dirty

    def _begin(self, lines: Sequence[Sequence[OffloadKey]], *, flushed: bool = False) -> Pledge:
        pledge = Pledge(
            [Part(line, outlet.in_flight, flushed=flushed) for outlet, line in zip(self._outlets, lines, strict=True)]
        )
        for outlet, part in zip(self._outlets, pledge.parts, strict=True):
            outlet.parts.append(part)
        self._pledges.append(pledge)
        self._follow_pledges()
        return pledge

    def _follow_pledges(self) -> None:
        for pledge in list(self._pledges):
            parts = zip(pledge.parts, self._outlets, strict=True)
            pledge.over = not any(part.flying or (part.line and self._moves(outlet)) for part, outlet in parts)
            if pledge.over:
                self._end(pledge)

    def _end(self, pledge: Pledge) -> None:
        self._pledges.remove(pledge)
        for outlet, part in zip(self._outlets, pledge.parts, strict=True):
            outlet.parts.remove(part)
            if part.flushed:
                outlet.put_off.extend(part.line)

    def _moves(self, outlet: Outlet) -> bool:
        """Whether what is in line will be offered, as far as is known."""
        return not self._closed and self._limit > 0 and not outlet.refuses

    # ---- counts

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
