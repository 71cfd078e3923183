"""Host memory in slots, and who is using each of them.

A slot may be given back by the table that hands it out while a thread or a DMA engine still writes into it. So
whoever moves bytes *holds* the slots meanwhile, and the table keeps a freed slot in quarantine until its last holder
has let go. Region and table do not know each other: the conductor asks :meth:`HostRegion.held_among` and carries
:meth:`HostRegion.take_released` over.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final
from weakref import WeakSet

import numpy as np
import torch

from asyncoffload.errors import CapacityError, ClosedError, InvalidArgument
from asyncoffload.memory.first_touch import first_touch, sensible_threads, wiped_on_fork
from asyncoffload.memory.pinning import MemoryPin, Pinned, Pinner, PinReport, address_of, keep_mapped
from asyncoffload.types import Int32s, Int64s

__all__ = ["HostRegion", "PinReport", "Pinned", "Pinner", "SlotHold"]

_log = logging.getLogger(__name__)

_pinned_regions: Final[WeakSet[HostRegion]] = WeakSet()
"""Those that a forked child must not take for pinned, nor, where their pages did not go with it, for memory."""


class SlotHold:
    """One holder of some slots: entering takes them, leaving lets go. May be left on another thread; not reusable."""

    __slots__ = ("_entered", "_region", "_slots")

    def __init__(self, region: HostRegion, slots: list[int]) -> None:
        self._region = region
        self._slots = slots
        self._entered = False

    def __enter__(self) -> None:
        if self._entered:
            raise InvalidArgument("a hold is entered once: ask the region for a new one")
        self._region._take(self._slots)
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._region._let_go(self._slots)

    def __repr__(self) -> str:
        return f"SlotHold({self._slots})"


class HostRegion:
    """Page-aligned host memory of ``n_slots`` slots of ``slot_bytes`` bytes.

    Holding, asking and letting go may happen on any thread. Memory that was never written costs address space only,
    until it is touched or pinned, for which the caller is blocked: allow 0.1 to 1 s per GB.

    A pinned region has to be closed: until then its memory stays mapped and pinned, also without a reference. After a
    ``fork`` the child finds the region closed if the memory is private, and unpinned if it is shared.

    Args:
        n_slots: number of slots, at least 1.
        slot_bytes: bytes of one slot, at least 1.
        memory: where the slots lie, from its first byte on; by default zeroed memory that is private to this process.
        pinner: pins the memory, as :meth:`pin`.
        touch_threads: threads that make all pages present at once; 0: each comes when it is first used. By default
            as many as are of use if there is a pinner, and none otherwise.

    Raises:
        InvalidArgument: a size is not positive, or the slots do not fit into ``memory``.
        CapacityError: the memory cannot be had.
    """

    def __init__(
        self,
        n_slots: int,
        slot_bytes: int,
        memory: mmap.mmap | None = None,
        *,
        pinner: Pinner | None = None,
        touch_threads: int | None = None,
    ) -> None:
        if n_slots <= 0 or slot_bytes <= 0:
            raise InvalidArgument(f"a region needs at least one slot of one byte, got {n_slots} x {slot_bytes} bytes")
        if memory is not None and len(memory) < n_slots * slot_bytes:
            raise InvalidArgument(f"{n_slots} slots x {slot_bytes} bytes do not fit into {len(memory)} bytes of memory")
        self.n_slots = n_slots
        self.slot_bytes = slot_bytes
        self._memory: mmap.mmap | None = memory if memory is not None else _anonymous(n_slots * slot_bytes)
        self._lock = threading.Lock()
        # Plain lists, not arrays: an array operation on so few elements may give up the interpreter lock in its middle,
        # and a loop that shares the machine with copying threads then waits for milliseconds to get it back.
        self._holders = [0] * n_slots
        self._released: set[int] = set()
        self._asked: set[int] = set()
        self._notify: Callable[[], None] | None = None
        self._pin = MemoryPin()
        self._is_private = False
        if pinner is not None:
            self._attempt_pin(pinner, touch_threads, zeros=memory is None)
        else:
            first_touch(address_of(self._memory), self.nbytes, touch_threads or 0, zeros=memory is None)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole region."""
        return self.n_slots * self.slot_bytes

    @property
    def pinned(self) -> bool:
        """Whether a device reads and writes all of the memory without the processor."""
        return self._pin.holds

    @property
    def pin_report(self) -> PinReport | None:
        """How the attempt at pinning went; None: there was none."""
        return self._pin.report

    @property
    def seams(self) -> Int64s:
        """Addresses, ascending, int64 of shape ``(n,)``, that no copy of a device may cross; none is within a slot.

        Memory is pinned in pieces, and those meet there: for the device, neighbouring slots of two pieces are not one
        run of memory.
        """
        return self._pin.seams

    @property
    def view(self) -> memoryview:
        """The memory as a writable memoryview of format ``B`` and shape ``(n_slots, slot_bytes)``, not a copy.

        Raises:
            ClosedError: the region was closed.
        """
        return memoryview(self._open_memory())[: self.nbytes].cast("B", (self.n_slots, self.slot_bytes))

    @property
    def tensor(self) -> torch.Tensor:
        """The memory as a uint8 tensor of shape ``(n_slots, slot_bytes)``, not a copy.

        Raises:
            ClosedError: the region was closed.
        """
        return torch.frombuffer(self._open_memory(), dtype=torch.uint8, count=self.nbytes).view(
            self.n_slots, self.slot_bytes
        )

    def slot(self, index: int) -> memoryview:
        """One slot as a flat, writable memoryview of ``slot_bytes`` bytes.

        Raises:
            InvalidArgument: there is no such slot.
            ClosedError: the region was closed.
        """
        if not 0 <= index < self.n_slots:
            raise InvalidArgument(f"slot {index} is not one of the region's {self.n_slots} slots")
        return memoryview(self._open_memory())[index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def hold(self, slots: Sequence[int] | Int32s) -> SlotHold:
        """A context manager that counts as a holder of each of the slots while it is entered.

        Raises:
            InvalidArgument: there is no such slot.
            ClosedError: on entering, when the region was closed.
        """
        wanted = list(set(slots.tolist() if isinstance(slots, np.ndarray) else slots))
        if wanted and (min(wanted) < 0 or max(wanted) >= self.n_slots):
            wrong = min(wanted) if min(wanted) < 0 else max(wanted)
            raise InvalidArgument(f"slot {wrong} is not one of the region's {self.n_slots} slots")
        return SlotHold(self, wanted)

    def hold_known(self, slots: list[int]) -> SlotHold:
        """As :meth:`hold`, for callers who have made sure that the slots exist and will not change the list."""
        return SlotHold(self, slots)

    def is_held(self, slot: int) -> bool:
        """Whether somebody holds the slot; as :meth:`held_among`."""
        return bool(self.held_among((slot,)))

    def held_among(self, slots: Sequence[int]) -> set[int]:
        """Those of the slots that somebody holds. Who is told of one will hear of its release by :meth:`on_release`."""
        with self._lock:
            holders = self._holders
            held = {slot for slot in slots if holders[slot]}
            self._asked |= held
            return held

    def take_released(self) -> list[int]:
        """The slots whose last holder let go since the last call and that nobody has held again since."""
        with self._lock:
            released = list(self._released)
            self._released.clear()
            return released

    def on_release(self, notify: Callable[[], None]) -> None:
        """Call ``notify`` after a slot that was reported as held has lost its last holder.

        It runs on the thread that let go, possibly a thread of a copy engine: it must not block and must not raise.
        """
        self._notify = notify

    def pin(self, pinner: Pinner, *, touch_threads: int | None = None) -> None:
        """Pin the memory; where that fails it stays pageable, with a warning. Blocks; the region may be in use.

        A region is pinned once, for all devices: further calls do nothing, also after a failure. Processes that share
        the memory pin it each for themselves.

        Raises:
            CapacityError: the machine has not as much memory as was mapped.
            ClosedError: the region was closed.
        """
        self._attempt_pin(pinner, touch_threads, zeros=False)

    def close(self) -> None:
        """Unpin the memory, and give it back once nobody looks at it any more. Idempotent.

        Blocks for the unpinning, about 0.1 s per GB. A region with holders stays mapped and pinned for good, with a
        warning; so does one that cannot be unpinned. Views that are still referenced keep the memory mapped until
        they are dropped. Nothing can be held or viewed afterwards.
        """
        with self._lock:
            memory, self._memory = self._memory, None
        if memory is not None:
            self._give_back(memory)

    def __repr__(self) -> str:
        state = "closed" if self._memory is None else f"{self.n_slots - self._holders.count(0)} held"
        pinned = ", pinned" if self.pinned else ""
        return f"HostRegion({self.n_slots} slots x {self.slot_bytes} bytes, {state}{pinned})"

    def _attempt_pin(self, pinner: Pinner, touch_threads: int | None, *, zeros: bool) -> None:
        threads = sensible_threads() if touch_threads is None else touch_threads
        memory = self._open_memory()
        # The child would share private pages until one side writes, and that parts this process from the pages that
        # the device knows; newer kernels copy all of them in the fork instead.
        self._is_private = wiped_on_fork(address_of(memory), self.nbytes)
        _pinned_regions.add(self)
        self._pin.attempt(memory, self.nbytes, self.slot_bytes, pinner, threads, zeros=zeros)
        if self._memory is None:  # closed meanwhile
            self._give_back(memory)

    def _give_back(self, memory: mmap.mmap) -> None:
        with self._lock:
            held = self.n_slots - self._holders.count(0)
        if held:  # a late write must not hit somebody else's memory
            keep_mapped(memory)
            _log.warning("%d slots are still in use: the region's %d bytes stay mapped", held, self.nbytes)
        else:
            self._pin.undo(memory)

    def _open_memory(self) -> mmap.mmap:
        memory = self._memory
        if memory is None:
            raise ClosedError(f"{self!r} was closed: its memory is gone")
        return memory

    def _take(self, slots: list[int]) -> None:
        holders = self._holders
        with self._lock:
            self._open_memory()
            for slot in slots:
                holders[slot] += 1
            # A slot that is held again must not leave its quarantine on an older release.
            if self._released:
                self._released.difference_update(slots)

    def _let_go(self, slots: list[int]) -> None:
        holders, awaited = self._holders, False
        with self._lock:
            for slot in slots:
                holders[slot] -= 1
            idle = [slot for slot in slots if not holders[slot]]
            self._released.update(idle)
            if self._asked:
                awaited = not self._asked.isdisjoint(idle)
                self._asked.difference_update(idle)
        if awaited and self._notify is not None:
            self._notify()


def _forget_pins() -> None:
    """In a forked child."""
    for region in tuple(_pinned_regions):
        region._pin.forget()
        if region._is_private:
            region._memory = None


os.register_at_fork(after_in_child=_forget_pins)


def _anonymous(nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise CapacityError(f"no {nbytes} bytes of host memory to be had ({error}): ask for fewer slots") from error
