"""The calls of an offloading manager on the primary tier alone, without waiting: what every conductor shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count

import numpy as np

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.handed_out import HandedOut
from asyncoffload.core.journal import Journal
from asyncoffload.core.offers import OfferCounts
from asyncoffload.core.slot_arrays import distinct, slots_in
from asyncoffload.core.write import Write
from asyncoffload.errors import BlocksUnavailable, InvalidArgument
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.types import CPULoadStoreSpec, Fate, Int64s, OffloadingEvent, PrepareStoreOutput


@dataclass(frozen=True, slots=True, eq=False)
class Pins:
    """Blocks that a reader holds.

    Attributes:
        keys: the blocks.
        slots: the slot of each, in the same order.
    """

    keys: Sequence[OffloadKey]
    slots: Int64s


@dataclass(frozen=True, slots=True)
class PrimaryStats:
    """The primary tier in numbers of blocks: first what is, then what has happened since the start.

    Attributes:
        slots: how many blocks fit.
        ready: readable blocks.
        pinned: those of them that somebody reads.
        writing: blocks being written.
        doomed: blocks voided by a reset and still held by somebody.
        quarantined: slots whose block has left while their memory was still in use.
        free: slots that can be handed out without evicting anything.
        dirty: readable blocks that no tier has a copy of; 0 where there are no tiers.
        stored: writes that made a block ready.
        evicted: blocks that had to make room.
        lost: those of them that no tier had a copy of.
        deferred: offers of absent blocks that were below the store threshold.
        refused: calls that wanted to write and found no room.
    """

    slots: int
    ready: int
    pinned: int
    writing: int
    doomed: int
    quarantined: int
    free: int
    dirty: int
    stored: int
    evicted: int
    lost: int
    deferred: int
    refused: int


def slots_spec(slots: Sequence[int] | Int64s) -> CPULoadStoreSpec:
    """Point at slots that are read."""
    return CPULoadStoreSpec(np.asarray(slots, dtype=np.int64))


def write_spec(write: Write) -> CPULoadStoreSpec:
    """Point at slots that are written."""
    return CPULoadStoreSpec(write.slot_array, write.generations)


class Primary:
    """Plain manager calls over one block table.

    Two kinds of callers complete what they began. *Owned* calls (``begin_...``, ``finish_...``) carry what was handed
    out, so they can only give back their own. *Paired* calls (``prepare_...``, then ``complete_load`` or
    ``claim_store``) name keys: of these only what a paired call handed out and is still outstanding is completed.

    Args:
        table: the blocks.
        store_threshold: a block is stored from this offer on; 1 stores it at once.
        tracked_offers: how many blocks' offers are remembered where the threshold is above 1.
        block_size: tokens per block, for events; 0 where it is not known.
        journal: where it is written down what becomes of the blocks; by default nowhere.

    Attributes:
        table: the blocks.
        journal: the journal.
        recording: whether events are kept for :meth:`take_events`.
    """

    def __init__(
        self,
        table: BlockTable,
        *,
        store_threshold: int = 1,
        tracked_offers: int = 64_000,
        block_size: int = 0,
        journal: Journal | None = None,
    ) -> None:
        if store_threshold < 1:
            raise InvalidArgument(f"a block is stored from its first offer on, or later: threshold {store_threshold}")
        self.table = table
        self.journal = Journal(0) if journal is None else journal
        self.recording = False
        self._block_size = block_size
        self._offers = OfferCounts(store_threshold, tracked_offers)
        self._loads: HandedOut[Int64s] = HandedOut()
        self._stores: HandedOut[Write] = HandedOut()
        self._paired_readers = np.zeros(table.n_slots, dtype=np.int32)
        self._paired_generation = np.zeros(table.n_slots, dtype=np.int64)
        self._events: list[OffloadingEvent] = []
        self._stored = 0
        self._deferred = 0
        self._refused = 0

    # ---- advice

    def lookup(self, keys: Sequence[OffloadKey]) -> int:
        """The length of the ready prefix. Nothing is touched.

        Raises:
            InvalidArgument: the key that ends the prefix is not ``bytes``.
        """
        try:
            length = self.table.prefix(keys)
        except TypeError:  # one of them cannot even be hashed
            checked_keys(keys)
            raise
        if length < len(keys) and type(keys[length]) is not bytes:
            checked_keys(keys)
        return length

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """Note that these blocks were asked for. Those that are not ready are ignored."""
        self.table.touch(keys)

    # ---- paired calls

    def prepare_load(self, keys: Sequence[OffloadKey]) -> CPULoadStoreSpec:
        """Pin all of these blocks until :meth:`complete_load`.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing was pinned.
            BlocksUnavailable: a block is not ready; nothing was pinned.
        """
        try:
            places = list(map(self.table.ready.__getitem__, keys))
        except (KeyError, TypeError):
            raise self.unavailable(checked_keys(keys)) from None
        if len(set(places)) != len(places):
            checked_keys(keys)  # says which
        slots = np.array(places, dtype=np.int64)
        self.table.pin_slots(slots)
        self._loads.add(keys, slots)
        return CPULoadStoreSpec(slots)

    def complete_load(self, keys: Sequence[OffloadKey]) -> None:
        """Unpin what :meth:`prepare_load` pinned, once per call of it."""
        slots = self._loads.take(keys)
        if slots is None:
            for whole, times in self._loads.break_up():
                self._paired_readers[whole] += times
            _, slots = self._holders(keys, self.table.ready)
            slots = slots[self._paired_readers[slots] > 0]
            self._paired_readers[slots] -= 1
        self.table.unpin_slots(slots)

    def prepare_store(self, keys: Sequence[OffloadKey], depth: int = 0) -> PrepareStoreOutput | None:
        """Hand out slots for those blocks that are absent and were offered often enough: for all or for none.

        Args:
            keys: the blocks, in the order of their prompt.
            depth: how many blocks of the prompt come before them.

        Returns:
            What to write where; None where there is no room for all of it, and then nothing has changed.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing has changed.
        """
        wanted = self.offer(keys)
        write = self.begin_store(wanted, keep=keys)
        if write is None:
            self.journal.add(Fate.REFUSED, self.table.absent(wanted))
            return None
        self._stores.add(write.keys, write)
        self.place(write, keys, depth)
        return PrepareStoreOutput(list(write.keys), write_spec(write), write.evicted)  # the caller may change its list

    def claim_store(self, keys: Sequence[OffloadKey], spec: CPULoadStoreSpec | None = None) -> Write:
        """Take over, for :meth:`finish_store`, those writes of these blocks that :meth:`prepare_store` handed out.

        Args:
            keys: the blocks. What is not, or no longer, being written on behalf of a paired call is left out.
            spec: the ``store_spec`` of that call, one slot per key: claims the very writes that it stands for, and
                none that another call has begun for the same keys since.

        Raises:
            InvalidArgument: the spec has not one slot per key; nothing was claimed.
        """
        if spec is None and (write := self._stores.take(keys)) is not None:
            return write
        for whole, _ in self._stores.break_up():
            self._paired_generation[whole.slot_array] = whole.generations
        held, slots = self._holders(keys, self.table.writing)
        generations = self._paired_generation[slots]
        mine = generations != 0
        if spec is not None:
            if len(spec) != len(keys):
                raise InvalidArgument(f"{len(keys)} keys cannot be completed by a spec of {len(spec)} slots")
            meant = set(zip(keys, spec.block_ids.tolist(), spec.generations.tolist(), strict=True))
            claims = zip(held, slots.tolist(), generations.tolist(), strict=True)
            mine &= np.fromiter(map(meant.__contains__, claims), dtype=np.bool_, count=len(held))
        if not mine.all():
            held, slots, generations = list(compress(held, mine)), slots[mine], generations[mine]
        self._paired_generation[slots] = 0
        return Write(held, slots.astype(np.int32), generations)

    # ---- owned calls

    def begin_load(self, keys: Sequence[OffloadKey]) -> Pins:
        """Pin the ready prefix, which may be empty.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing was pinned.
        """
        keys = checked_keys(keys)
        secured = keys[: self.table.prefix(keys)]
        slots = slots_in(self.table.ready, secured)
        self.table.pin_slots(slots)
        return Pins(secured, slots)

    def finish_load(self, pins: Pins) -> None:
        """Unpin what :meth:`begin_load` pinned."""
        self.table.unpin_slots(pins.slots)

    def offer(self, keys: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
        """Count an offer of those of these blocks that are absent; returns the keys without those offered too rarely.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing was counted.
        """
        if self._offers.threshold == 1:
            return keys
        absent = self.table.absent(checked_keys(keys))
        wanted = self._offers.admit(absent)
        self._deferred += len(absent) - len(wanted)
        if len(wanted) < len(absent):
            self.journal.add(Fate.DEFERRED, list(set(absent).difference(wanted)))
        return wanted

    def begin_store(self, keys: Sequence[OffloadKey], *, keep: Sequence[OffloadKey] = ()) -> Write | None:
        """Hand out slots for those of the blocks that are absent; see :meth:`BlockTable.begin_write`."""
        write = self.table.begin_write(keys, keep=() if keep is keys else keep)
        if write is None:
            self._refused += 1
        elif write.evicted:
            self.journal.evicted(write)
            self._record(write.evicted, removed=True)
        return write

    def place(self, write: Write, keys: Sequence[OffloadKey], depth: int) -> None:
        """Note where in their prompt the blocks of a write lie: at the end of ``keys``, ``depth`` blocks further on."""
        self.table.set_depths(write.slot_array, count(depth + len(keys) - len(write.keys)))

    def finish_store(self, write: Write, ok: bool = True) -> list[OffloadKey]:
        """The device has written these blocks, or has not; see :meth:`BlockTable.end_write`."""
        arrived = self.finish_write(write, ok)
        self.journal.add(Fate.STORED if ok else Fate.FAILED, arrived if ok else write.keys)
        return arrived

    def finish_write(self, write: Write, ok: bool | Sequence[bool] = True) -> list[OffloadKey]:
        """The writing of these blocks has ended, whoever wrote them; see :meth:`BlockTable.end_write`."""
        arrived = self.table.end_write(write, ok)
        self._stored += len(arrived)
        if arrived:
            self._record(arrived, removed=False)
        return arrived

    # ---- the whole

    def reset(self) -> list[OffloadKey]:
        """Void every block; see :meth:`BlockTable.reset`. Returns the blocks that were ready until now."""
        left = self.table.reset()
        if left:
            self.journal.add(Fate.VOIDED, left)
            self._record(left, removed=True)
        return left

    def take_events(self) -> list[OffloadingEvent]:
        """What has appeared and left since the last call, in order. Empty unless ``recording``."""
        events, self._events = self._events, []
        return events

    def stats(self) -> PrimaryStats:
        """The table's numbers and this object's counters."""
        table = self.table
        return PrimaryStats(
            slots=table.n_slots,
            ready=len(table.ready),
            pinned=table.pinned,
            writing=len(table.writing),
            doomed=len(table.doomed),
            quarantined=table.quarantined,
            free=table.free,
            dirty=table.n_dirty,
            stored=self._stored,
            evicted=table.evicted,
            lost=table.lost,
            deferred=self._deferred,
            refused=self._refused,
        )

    def unavailable(self, keys: Sequence[OffloadKey]) -> BlocksUnavailable:
        """The error that says that not all of these blocks are ready, and how many of the leading ones are."""
        prefix = self.table.prefix(keys)
        return BlocksUnavailable(
            f"block {prefix} of {len(keys)}, key {keys[prefix].hex()}, is not in the primary tier: "
            f"load the first {prefix}, or bring the rest in before",
            ready_prefix=prefix,
        )

    def _holders(self, keys: Sequence[OffloadKey], state: dict[OffloadKey, int]) -> tuple[Sequence[OffloadKey], Int64s]:
        """Those of the keys that are in this state, or were when a reset doomed them, and their slots.

        Raises:
            InvalidArgument: a key is malformed or appears twice.
        """
        try:
            slots = slots_in(state, keys)
        except (KeyError, TypeError):
            slots = None
        if slots is None or not distinct(slots):
            doomed = self.table.doomed
            keys = [key for key in checked_keys(keys) if key in state or key in doomed]
            slots = np.array([state[key] if key in state else doomed[key] for key in keys], dtype=np.int64)
        return keys, slots

    def _record(self, keys: Sequence[OffloadKey], *, removed: bool) -> None:
        if self.recording:
            self._events.append(OffloadingEvent(keys, self._block_size, CPULoadStoreSpec.medium(), removed))
