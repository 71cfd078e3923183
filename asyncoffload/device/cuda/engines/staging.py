"""Buffers of device memory that bytes pass through on their way, and the order in which that happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from asyncoffload.device.cuda.driver import Driver

SLOTS: Final = 2
"""While one is spread over the pages, the other is filled."""


@dataclass(slots=True, eq=False)
class Slot:
    """One buffer.

    Attributes:
        address: of its memory.
        filled, emptied: events; what each marks has to have ended before the other side may touch the buffer.
    """

    address: int
    filled: int
    emptied: int


class Lane:
    """The slots that belong to one stream, and a stream beside it that reads ahead of it into them.

    Attributes:
        ahead: the handle of that other stream.
    """

    def __init__(self, driver: Driver, slot_bytes: int) -> None:
        self._driver = driver
        with ExitStack() as undoing:

            def make(create: Callable[[], int], destroy: Callable[[int], None]) -> int:
                handle = create()
                undoing.callback(destroy, handle)
                return handle

            self.ahead = make(driver.create_stream, driver.destroy_stream)
            self._start = make(driver.create_event, driver.destroy_event)
            self._slots = [
                Slot(
                    make(lambda: driver.alloc_device(slot_bytes), driver.free_device),
                    make(driver.create_event, driver.destroy_event),
                    make(driver.create_event, driver.destroy_event),
                )
                for _ in range(SLOTS)
            ]
            undoing.callback(driver.synchronize_stream, self.ahead)
            self._freeing = undoing.pop_all()
        self._next = 0

    def slots(self, n: int) -> list[Slot]:
        """The slots of the next ``n`` turns."""
        first, self._next = self._next, (self._next + n) % SLOTS
        return [self._slots[(first + turn) % SLOTS] for turn in range(n)]

    def fill_ahead(self, slot: Slot, stream: int, fill: Callable[[int], object], *, at_once: bool) -> None:
        """Fill a slot as soon as it is empty, and let the stream go on when it is full.

        Args:
            fill: queues copies into the slot, in the stream whose handle it is given.
            at_once: whether they may start before what is queued in ``stream`` so far has ended.
        """
        driver = self._driver
        driver.stream_wait_event(self.ahead, slot.emptied)
        if not at_once:
            driver.record_event(self._start, stream)
            driver.stream_wait_event(self.ahead, self._start)
        try:
            fill(self.ahead)
        finally:
            # Also behind copies of which some could not be queued: the stream's end is theirs as well.
            driver.record_event(slot.filled, self.ahead)
            driver.stream_wait_event(stream, slot.filled)

    def empties(self, slot: Slot, stream: int) -> None:
        """What is queued in the stream so far is what reads the slot."""
        self._driver.record_event(slot.emptied, stream)

    def close(self) -> None:
        """Free everything; idempotent. Blocks until the device has come to rest."""
        self._freeing.close()


class Lanes:
    """The lanes of all streams that stage, each made when it is first asked for. Safe on any thread.

    Args:
        slot_bytes: size of a slot.
    """

    def __init__(self, driver: Driver, slot_bytes: int) -> None:
        self._driver = driver
        self.slot_bytes = slot_bytes
        self._lock = threading.Lock()
        self._lanes: dict[int, Lane] = {}

    def of(self, stream: int) -> Lane:
        """The lane of a stream.

        Raises:
            DeviceError: the driver has no memory, or no streams or events, to give.
        """
        with self._lock:
            if stream not in self._lanes:
                self._lanes[stream] = Lane(self._driver, self.slot_bytes)
            return self._lanes[stream]

    @property
    def nbytes(self) -> int:
        """Device memory held."""
        return len(self._lanes) * SLOTS * self.slot_bytes

    def close(self) -> None:
        """Free all of them; idempotent."""
        with self._lock, ExitStack() as closing:
            while self._lanes:
                closing.callback(self._lanes.popitem()[1].close)
