"""Which block lies in which slot of the primary tier, who holds it, and who has to go next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, compress, takewhile

import numpy as np

from asyncoffload.core.cold_tail import ColdTail
from asyncoffload.core.copies import Copies
from asyncoffload.core.free_slots import FreeSlots, HeldAmong
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.slot_arrays import check_distinct, slots_in
from asyncoffload.core.write import Write
from asyncoffload.errors import InternalError, InvalidArgument
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.types import Int32s, Int64s


class BlockTable:
    """The blocks of the primary tier.

    A block is absent, *writing*, *ready*, or *doomed* (voided by a reset while somebody held it): the dict that its
    key is in is its state. Everything else is flat arrays indexed by slot. There is no object per block, so a hundred
    thousand resident blocks add next to nothing to a garbage collection.

    A slot whose block leaves while somebody outside the table still uses its memory (``held_among`` says so) is
    quarantined until :meth:`release` names it. A ready block whose memory is used like that is passed over as victim.

    Args:
        n_slots: how many blocks fit.
        policy: decides who is evicted; from now on it belongs to this table.
        n_tiers: how many secondary tiers there are. A block has one clean bit for each: "this tier has a copy".
        keep_dirty: no block is evicted of which no tier has a copy, if there are tiers.
        held_among: those of some slots whose memory is used by somebody the table does not know.

    Attributes:
        ready: the readable blocks and their slots; not to be changed from outside.
        writing: the blocks being written and their slots; not to be changed from outside.
        doomed: blocks voided while they were held, and their slots; they cannot be written until the last holder
            has let go. Not to be changed from outside.
        cold: the order in which blocks leave.
        keeps_dirty: whether a block stays until some tier has a copy.
        touched: how often a block was touched so far.
        evicted: blocks evicted so far.
        lost: how many of those no tier had a copy of.
    """

    def __init__(
        self,
        n_slots: int,
        policy: EvictionPolicy,
        *,
        n_tiers: int = 0,
        keep_dirty: bool = False,
        held_among: HeldAmong | None = None,
    ) -> None:
        if n_slots <= 0:
            raise InvalidArgument(f"a primary tier needs one slot or more, got {n_slots}")
        self.n_slots = n_slots
        self.ready: dict[OffloadKey, int] = {}
        self.writing: dict[OffloadKey, int] = {}
        self.doomed: dict[OffloadKey, int] = {}
        self.keeps_dirty = keep_dirty and n_tiers > 0
        self.touched = 0
        self.evicted = 0
        self.lost = 0
        self._doomed_keys: dict[int, OffloadKey] = {}
        self._policy = policy
        self._policy.reset(n_slots)
        self._has_tiers = n_tiers > 0
        self._free = FreeSlots(n_slots, held_among)
        self._depth = np.zeros(n_slots, dtype=np.int32)
        self._key_of = np.full(n_slots, OffloadKey(b""), dtype=np.object_)
        self._readers = np.zeros(n_slots, dtype=np.int32)
        self._pinned = 0  # ready slots with a reader
        self._generation = np.zeros(n_slots, dtype=np.int64)  # 0: nobody writes the slot
        self._last_generation = 0
        self._copies = Copies(n_slots)
        self.cold = ColdTail(policy, self._readers, self._copies, n_tiers, keep_dirty=keep_dirty, held_among=held_among)

    @property
    def available(self) -> int:
        """How many slots a write could get at most: free ones, and those of ready blocks that may be evicted."""
        idle = len(self.ready) - self._pinned
        if self._free.stranded:
            idle -= self._idle_stranded
        if self.keeps_dirty and idle:
            clean = self._copies.idle_and_clean(self._readers) if self._pinned else self._copies.clean
            idle = min(idle, clean)
        return len(self._free) + idle

    @property
    def free(self) -> int:
        """Slots that hold nothing and can be handed out."""
        return len(self._free)

    @property
    def pinned(self) -> int:
        """Ready blocks that somebody reads, be it to copy them to a tier."""
        return self._pinned

    @property
    def copied_to_tiers(self) -> int:
        """Blocks that are being read to copy them to a tier."""
        return self._copies.under_way

    @property
    def n_dirty(self) -> int:
        """Ready blocks that no tier has a copy of; 0 for a table without tiers."""
        return len(self.ready) - self._copies.clean if self._has_tiers else 0

    @property
    def quarantined(self) -> int:
        """Slots whose block has left while their memory was still in use."""
        return len(self._free.quarantine)

    @property
    def quarantined_for_now(self) -> int:
        """Those among them that can be expected back."""
        return len(self._free.quarantine - self._free.stranded)

    def prefix(self, keys: Sequence[OffloadKey]) -> int:
        """How many of the leading keys are ready."""
        return len(list(takewhile(self.ready.__contains__, keys)))

    def absent(self, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Those of the keys that could be written: neither ready, nor being written, nor doomed."""
        ready, writing, doomed = self.ready, self.writing, self.doomed
        if all(state.keys().isdisjoint(keys) for state in (ready, writing, doomed) if state):
            return list(keys)
        return [key for key in keys if key not in ready and key not in writing and key not in doomed]

    def touch(self, keys: Iterable[OffloadKey]) -> None:
        """Note that these blocks were asked for, in request order. Those that are not ready are ignored."""
        slots = self._ready_slots(dict.fromkeys(keys))
        if len(slots):
            self._policy.touch(slots)
            self.touched += len(slots)

    # ---- readers

    def pin(self, keys: Sequence[OffloadKey]) -> list[int]:
        """Add a reader to each of these blocks, all different, and return their slots. Recency does not change.

        Raises:
            KeyError: a block is not ready; none was pinned.
        """
        slots = slots_in(self.ready, keys)
        check_distinct(slots)
        self.pin_slots(slots)
        return list(slots.tolist())

    def pin_slots(self, slots: Int64s) -> None:
        """Add a reader to each of these slots of ready blocks, which the caller knows to be all different."""
        before = self._readers[slots]
        self._readers[slots] = before + 1
        self._pinned += len(slots) - int(np.count_nonzero(before))

    def unpin(self, slots: Sequence[int]) -> None:
        """Take a reader from each of these slots, all different. A doomed block leaves with its last one."""
        held = np.array(slots, dtype=np.int64)
        check_distinct(held)
        self.unpin_slots(held)

    def unpin_slots(self, slots: Int64s) -> None:
        """As :meth:`unpin`, for slots that the caller knows to be all different."""
        left = self._readers[slots] - 1
        still_read = int(np.count_nonzero(left))
        if still_read and (left < 0).any():
            raise InternalError(f"slot {slots[left < 0][0]} has no reader left to take away")
        self._readers[slots] = left
        self._pinned -= len(slots) - still_read
        if self.doomed:
            self._pinned += self._bury(slots[left == 0].tolist())

    # ---- writers

    def begin_write(self, keys: Iterable[OffloadKey], *, keep: Iterable[OffloadKey] = ()) -> Write | None:
        """Hand out a slot for each of these blocks that is absent: for all of them or for none.

        Room is made by evicting ready blocks without readers, the coldest first, but rather blocks of which some
        tier has a copy, and none of the others where the table keeps them. No block of ``keys`` or ``keep`` is evicted.

        Returns:
            What is to be written where. None where there is no room for all of it; then nothing has changed.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing has changed.
        """
        keys = checked_keys(keys)
        new = self.absent(keys)
        if not new:
            return Write([], np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64))
        need = len(new) - len(self._free)
        victims: Sequence[OffloadKey] = []
        lost = 0
        if need > 0:
            if need > len(self.ready) - self._pinned or (self.keeps_dirty and need > self._copies.clean):
                return None
            present = keys if len(new) < len(keys) else ()
            stay = self._ready_slots(chain(present, keep))
            victim_slots = self.cold.victims(need, stay, some_read=self._pinned > 0)
            if len(victim_slots) < need:
                return None
            victims, lost = self._evict(victim_slots)
        places = self._free.take(len(new))
        slots = np.array(places, dtype=np.int32)
        self._last_generation += 1
        self._generation[slots] = self._last_generation
        self.writing.update(zip(new, places, strict=True))
        return Write(new, slots, np.full(len(new), self._last_generation, dtype=np.int64), victims, lost)

    def end_write(self, write: Write, ok: bool | Sequence[bool] = True) -> list[OffloadKey]:
        """The writing of these blocks has ended, ``ok`` for all or one by one. What failed gives its slot back.

        Whatever the write does not own any more (ended before, or voided by a reset) is left alone, so it may be
        called late and twice.

        Returns:
            The blocks that became ready by this call.
        """
        keys, slots = write.keys, write.slot_array
        owned = self._generation[slots] == write.generations
        self._generation[slots[owned]] = 0
        if self.doomed:
            alive = np.array([slot not in self._doomed_keys for slot in slots.tolist()], dtype=np.bool_)
            self._bury(slots[owned & ~alive].tolist())
            owned &= alive
        arrived = owned & np.asarray(ok, dtype=np.bool_)
        if arrived.all():
            return self._arrive(keys, slots)
        failed = owned & ~arrived
        self._end_writing(list(compress(keys, failed)))
        self._free.give_back(slots[failed].tolist())
        return self._arrive(list(compress(keys, arrived)), slots[arrived])

    def reset(self) -> list[OffloadKey]:
        """Void every block. Idle ones are gone at once; those that are read or written go with their last holder.

        Returns:
            The blocks that were ready until now.
        """
        left = list(self.ready)
        readers = self._readers.tolist()
        idle = [slot for slot in self.ready.values() if not readers[slot]]
        self.doomed.update((key, slot) for key, slot in self.ready.items() if readers[slot])
        self.doomed.update(self.writing)
        self._doomed_keys = {slot: key for key, slot in self.doomed.items()}
        self.ready.clear()
        self.writing.clear()
        self._pinned = 0
        self._policy.reset(self.n_slots)
        self._copies.forget_all()
        self._free.give_back(idle)
        return left

    def release(self, slots: Iterable[int]) -> None:
        """The memory of these slots is no longer in use: those in quarantine can be handed out again."""
        self._free.release(slots)

    def strand(self, slots: Iterable[int]) -> None:
        """The memory of these slots stays in use for longer than anybody should wait, until :meth:`release`."""
        self._free.stranded.update(slots)

    # ---- places in prompts

    def set_depths(self, slots: Sequence[int] | Int32s, depths: Iterable[int]) -> None:
        """Note how many blocks of its prompt come before that of each slot; nothing here depends on it."""
        self._depth[slots] = np.fromiter(depths, dtype=np.int32, count=len(slots))

    def depths_of(self, slots: Sequence[int]) -> list[int]:
        """What was noted of the blocks in these slots."""
        depths: list[int] = self._depth[slots].tolist()
        return depths

    # ---- copies in tiers

    def mark_clean(self, keys: Iterable[OffloadKey], tier: int) -> None:
        """The tier has a copy of these blocks. Those that are not ready are ignored."""
        self._copies.add(self._ready_slots(dict.fromkeys(keys)), tier)

    def mark_dirty(self, keys: Iterable[OffloadKey], tier: int) -> None:
        """The tier has no copy of these blocks any more. Those that are not ready are ignored."""
        self._copies.remove(self._ready_slots(dict.fromkeys(keys)), tier)

    def slots_for(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> int:
        """How many slots must be free, or hold clean blocks, for these keys to be written while others are kept."""
        return len(self.absent(keys)) + int(np.count_nonzero(self._copies.has_any(self._ready_slots(keep))))

    def out_of_reach(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> int:
        """How many slots too many are stranded for these keys ever to be written while others are kept; 0 for none."""
        stranded = self._free.stranded
        if not stranded:
            return 0
        lost = len(stranded.union(self._ready_slots(keep).tolist()))
        return max(0, len(self.absent(keys)) - (self.n_slots - lost))

    def dirty(self, slots: Int32s, tier: int) -> list[OffloadKey]:
        """The blocks in those of the slots of which the tier has no copy, and is not being given one."""
        return self._keys_of(self._copies.missing(slots, tier))

    def dirty_among(self, keys: Iterable[OffloadKey], tier: int) -> list[OffloadKey]:
        """Those of these blocks that are ready, and dirty for the tier, each once."""
        return self.dirty(self._ready_slots(dict.fromkeys(keys)), tier)

    def begin_copies(self, keys: Sequence[OffloadKey], tier: int) -> list[int]:
        """The tier is being given copies of these blocks, ready and all different: pin them, return their slots."""
        slots = slots_in(self.ready, keys)
        check_distinct(slots)
        self.pin_slots(slots)
        self._copies.begin(slots, tier)
        return list(slots.tolist())

    def end_copies(self, slots: Sequence[int], tier: int) -> None:
        """That has ended, well or not: unpin them."""
        ended = np.array(slots, dtype=np.int64)
        self._copies.end(ended, tier)
        self.unpin_slots(ended)

    # ---- inside

    @property
    def _idle_stranded(self) -> int:
        stranded = np.array(list(self._free.stranded), dtype=np.int64)
        idle = stranded[self._readers[stranded] == 0].tolist()
        return sum(self.ready.get(key) == slot for key, slot in zip(self._key_of[idle], idle, strict=True))

    def _keys_of(self, slots: Int32s) -> list[OffloadKey]:
        keys: list[OffloadKey] = self._key_of[slots].tolist()
        return keys

    def _ready_slots(self, keys: Iterable[OffloadKey]) -> Int32s:
        return np.array([slot for slot in map(self.ready.get, keys) if slot is not None], dtype=np.int32)

    def _evict(self, slots: Int32s) -> tuple[Sequence[OffloadKey], int]:
        keys = self._keys_of(slots)
        deque(map(self.ready.__delitem__, keys), maxlen=0)
        self._policy.evict(keys, slots)
        self._free.add(slots.tolist())
        self.evicted += len(keys)
        lost = len(keys) - self._copies.forget(slots) if self._has_tiers else 0
        self.lost += lost
        return keys, lost

    def _arrive(self, keys: Sequence[OffloadKey], slots: Int32s) -> list[OffloadKey]:
        self._end_writing(keys)
        self._key_of[slots] = keys
        self.ready.update(zip(keys, slots.tolist(), strict=True))
        self._policy.insert(keys, slots)
        return list(keys)

    def _end_writing(self, keys: Sequence[OffloadKey]) -> None:
        if len(keys) == len(self.writing):
            self.writing.clear()
        else:
            deque(map(self.writing.__delitem__, keys), maxlen=0)

    def _bury(self, slots: Iterable[int]) -> int:
        """Let go of those of the slots that hold a doomed block; returns how many."""
        gone = [slot for slot in slots if slot in self._doomed_keys]
        for slot in gone:
            del self.doomed[self._doomed_keys.pop(slot)]
        self._free.give_back(gone)
        return len(gone)

    def __repr__(self) -> str:
        return (
            f"<BlockTable of {self.n_slots} slots: {len(self.ready)} ready ({self._pinned} pinned), "
            f"{len(self.writing)} writing, {len(self.doomed)} doomed, {self.quarantined} quarantined, {self.free} free>"
        )
