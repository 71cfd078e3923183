"""Which block lies in which slot of the primary tier, who holds it, and who has to go next."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile

from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.errors import InternalError, InvalidArgument
from asyncoffload.keys import OffloadKey, checked_keys

VICTIM_WINDOW = 64
"""How many blocks further a clean victim is looked for before a block without a copy is given up."""


@dataclass(frozen=True, slots=True)
class Write:
    """Slots that were handed out to be written, and what had to go for them.

    Attributes:
        keys: the blocks to be written.
        slots: the slot of each key, in the same order.
        generations: which use of each slot is meant, in the same order; never 0.
        evicted: the keys that left to make room.
        lost: how many of them no tier had a copy of; 0 for a table without tiers.
    """

    keys: Sequence[OffloadKey]
    slots: Sequence[int]
    generations: Sequence[int]
    evicted: Sequence[OffloadKey] = ()
    lost: int = 0


class BlockTable:
    """The blocks of the primary tier.

    A block is absent, *writing*, *ready*, or *doomed* (voided by a reset while somebody held it): the dict that its
    key is in is its state. Everything else is flat lists indexed by slot. There is no object per block, so a hundred
    thousand resident blocks add next to nothing to a garbage collection.

    A slot whose block leaves while somebody outside the table still uses its memory (``is_held`` says so) is
    quarantined until :meth:`release` names it. A ready block whose memory is used like that is passed over as victim.

    Args:
        n_slots: how many blocks fit.
        policy: decides who is evicted; from now on it belongs to this table.
        n_tiers: how many secondary tiers there are. A block has one clean bit for each: "this tier has a copy".
        is_held: whether somebody the table does not know uses the memory of a slot.

    Attributes:
        ready: the readable blocks and their slots; not to be changed from outside.
        writing: the blocks being written and their slots; not to be changed from outside.
        doomed: blocks voided while they were held, and their slots; they cannot be written until the last holder
            has let go. Not to be changed from outside.
        evicted: blocks evicted so far.
        lost: how many of those no tier had a copy of.
    """

    def __init__(
        self,
        n_slots: int,
        policy: EvictionPolicy,
        *,
        n_tiers: int = 0,
        is_held: Callable[[int], bool] | None = None,
    ) -> None:
        if n_slots <= 0:
            raise InvalidArgument(f"a primary tier needs one slot or more, got {n_slots}")
        self.n_slots = n_slots
        self.ready: dict[OffloadKey, int] = {}
        self.writing: dict[OffloadKey, int] = {}
        self.doomed: dict[OffloadKey, int] = {}
        self.evicted = 0
        self.lost = 0
        self._doomed_keys: dict[int, OffloadKey] = {}
        self._policy = policy
        self._policy.reset(n_slots)
        self._has_tiers = n_tiers > 0
        self._is_held = is_held
        self._free = list(range(n_slots - 1, -1, -1))
        self._quarantine: set[int] = set()
        self._readers = [0] * n_slots
        self._pinned = 0  # ready slots with a reader
        self._generation = [0] * n_slots  # 0: nobody writes the slot
        self._last_generation = 0
        self._clean = [0] * n_slots

    @property
    def available(self) -> int:
        """How many slots a write could get at most: free ones, and those of ready blocks without readers."""
        return len(self._free) + len(self.ready) - self._pinned

    @property
    def free(self) -> int:
        """Slots that hold nothing and can be handed out."""
        return len(self._free)

    @property
    def pinned(self) -> int:
        """Ready blocks that somebody reads."""
        return self._pinned

    @property
    def quarantined(self) -> int:
        """Slots whose block has left while their memory was still in use."""
        return len(self._quarantine)

    def prefix(self, keys: Sequence[OffloadKey]) -> int:
        """How many of the leading keys are ready."""
        return len(list(takewhile(self.ready.__contains__, keys)))

    def absent(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """Those of the keys that could be written: neither ready, nor being written, nor doomed."""
        ready, writing, doomed = self.ready, self.writing, self.doomed
        return [key for key in keys if key not in ready and key not in writing and key not in doomed]

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Note that these blocks were asked for, in request order. Those that are not ready are ignored."""
        self._policy.touch(keys)

    # ---- readers

    def pin(self, keys: Iterable[OffloadKey]) -> list[int]:
        """Add a reader to each of these blocks and return their slots. Recency does not change.

        Raises:
            KeyError: a block is not ready; none was pinned.
        """
        slots = list(map(self.ready.__getitem__, keys))
        readers = self._readers
        for slot in slots:
            count = readers[slot]
            readers[slot] = count + 1
            if not count:
                self._pinned += 1
        return slots

    def unpin(self, slots: Iterable[int]) -> None:
        """Take a reader from each of these slots. A doomed block leaves with its last one."""
        readers = self._readers
        idle = []
        for slot in slots:
            count = readers[slot] - 1
            if count < 0:
                raise InternalError(f"slot {slot} has no reader left to take away")
            readers[slot] = count
            if not count:
                idle.append(slot)
        self._pinned -= len(idle)
        if self.doomed:
            self._pinned += self._bury(idle)

    # ---- writers

    def begin_write(self, keys: Iterable[OffloadKey], *, keep: Iterable[OffloadKey] = ()) -> Write | None:
        """Hand out a slot for each of these blocks that is absent: for all of them or for none.

        Room is made by evicting ready blocks without readers, the coldest first, but rather blocks of which some
        tier has a copy. No block of ``keys`` or ``keep`` is evicted.

        Returns:
            What is to be written where. None where there is no room for all of it; then nothing has changed.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing has changed.
        """
        keys = checked_keys(keys)
        new = self.absent(keys)
        if not new:
            return Write((), (), ())
        need = len(new) - len(self._free)
        victims: list[OffloadKey] = []
        lost = 0
        if need > 0:
            if len(new) > self.available:
                return None
            victims = self._victims(need, self.ready.keys() & chain(keys, keep))
            if len(victims) < need:
                return None
            lost = self._evict(victims)
        slots = self._free[: -len(new) - 1 : -1]
        del self._free[-len(new) :]
        self._last_generation += 1
        for slot in slots:
            self._generation[slot] = self._last_generation
        self.writing.update(zip(new, slots, strict=True))
        return Write(new, slots, [self._last_generation] * len(new), victims, lost)

    def end_write(self, write: Write, ok: bool | Iterable[bool] = True) -> list[OffloadKey]:
        """The writing of these blocks has ended, ``ok`` for all or one by one. What failed gives its slot back.

        Whatever the write does not own any more (ended before, or voided by a reset) is left alone, so it may be
        called late and twice.

        Returns:
            The blocks that became ready by this call.
        """
        generations, writing = self._generation, self.writing
        arrived: list[OffloadKey] = []
        slots: list[int] = []
        failed: list[int] = []
        voided: list[int] = []
        outcomes = [ok] * len(write.keys) if isinstance(ok, bool) else ok
        for key, slot, generation, good in zip(write.keys, write.slots, write.generations, outcomes, strict=True):
            if generations[slot] != generation:
                continue
            generations[slot] = 0
            if slot in self._doomed_keys:
                voided.append(slot)
                continue
            del writing[key]
            if good:
                arrived.append(key)
                slots.append(slot)
            else:
                failed.append(slot)
        self.ready.update(zip(arrived, slots, strict=True))
        if self._has_tiers:
            for slot in slots:
                self._clean[slot] = 0
        self._policy.insert(arrived)
        self._give_back(failed)
        self._bury(voided)
        return arrived

    def reset(self) -> list[OffloadKey]:
        """Void every block. Idle ones are gone at once; those that are read or written go with their last holder.

        Returns:
            The blocks that were ready until now.
        """
        left = list(self.ready)
        readers = self._readers
        idle = [slot for slot in self.ready.values() if not readers[slot]]
        self.doomed.update((key, slot) for key, slot in self.ready.items() if readers[slot])
        self.doomed.update(self.writing)
        self._doomed_keys = {slot: key for key, slot in self.doomed.items()}
        self.ready.clear()
        self.writing.clear()
        self._pinned = 0
        self._policy.reset(self.n_slots)
        self._give_back(idle)
        return left

    def release(self, slots: Iterable[int]) -> None:
        """The memory of these slots is no longer in use: those in quarantine can be handed out again."""
        released = self._quarantine.intersection(slots)
        self._quarantine -= released
        self._free.extend(released)

    # ---- copies in tiers

    def mark_clean(self, keys: Iterable[OffloadKey], tier: int) -> None:
        """The tier has a copy of these blocks. Those that are not ready are ignored."""
        for slot in self._ready_slots(keys):
            self._clean[slot] |= 1 << tier

    def mark_dirty(self, keys: Iterable[OffloadKey], tier: int) -> None:
        """The tier has no copy of these blocks any more. Those that are not ready are ignored."""
        for slot in self._ready_slots(keys):
            self._clean[slot] &= ~(1 << tier)

    def dirty(self, window: int, tier: int) -> list[OffloadKey]:
        """Of the ``window`` coldest blocks those without readers of which the tier has no copy, coldest first."""
        ready, readers, clean, bit = self.ready, self._readers, self._clean, 1 << tier
        coldest = ((key, ready[key]) for key in islice(self._policy.cold(), window))
        return [key for key, slot in coldest if not readers[slot] and not clean[slot] & bit]

    # ---- inside

    def _ready_slots(self, keys: Iterable[OffloadKey]) -> Iterator[int]:
        return (slot for slot in map(self.ready.get, keys) if slot is not None)

    def _victims(self, need: int, keep: Container[OffloadKey]) -> list[OffloadKey]:
        ready, readers, clean, is_held = self.ready, self._readers, self._clean, self._is_held
        idle = self._policy.cold()
        if self._pinned or keep:
            idle = (key for key in idle if not readers[ready[key]] and key not in keep)
        if is_held is not None:
            idle = (key for key in idle if not is_held(ready[key]))
        if not self._has_tiers:
            return list(islice(idle, need))
        window = list(islice(idle, need + VICTIM_WINDOW))
        copied = [key for key in window if clean[ready[key]]]
        if len(copied) < need:
            copied += islice((key for key in window if not clean[ready[key]]), need - len(copied))
        return copied[:need]

    def _evict(self, victims: Sequence[OffloadKey]) -> int:
        slots = list(map(self.ready.pop, victims))
        self._policy.remove(victims, evicted=True)
        self._free.extend(slots)
        self.evicted += len(slots)
        lost = sum(not self._clean[slot] for slot in slots) if self._has_tiers else 0
        self.lost += lost
        return lost

    def _bury(self, slots: Iterable[int]) -> int:
        """Let go of those of the slots that hold a doomed block; returns how many."""
        gone = [slot for slot in slots if slot in self._doomed_keys]
        for slot in gone:
            del self.doomed[self._doomed_keys.pop(slot)]
        self._give_back(gone)
        return len(gone)

    def _give_back(self, slots: Iterable[int]) -> None:
        if self._is_held is None:
            self._free.extend(slots)
            return
        for slot in slots:
            if self._is_held(slot):
                self._quarantine.add(slot)
            else:
                self._free.append(slot)

    def __repr__(self) -> str:
        return (
            f"<BlockTable of {self.n_slots} slots: {len(self.ready)} ready ({self._pinned} pinned), "
            f"{len(self.writing)} writing, {len(self.doomed)} doomed, {self.quarantined} quarantined, {self.free} free>"
        )
