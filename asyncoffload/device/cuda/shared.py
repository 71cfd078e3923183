"""What the streams of one device have in common: the driver and its context, the lock, and the end of it all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.base import Reservation
from asyncoffload.device.cuda.pools import MarkPool
from asyncoffload.errors import ClosedError, DeviceError
from asyncoffload.types import Int64s

if TYPE_CHECKING:
    from asyncoffload.device.cuda.launch_queue import LaunchQueue


class Launcher(Protocol):
    """Queues batches of copies in driver streams, one way or another: the surface of :class:`EngineChoice`. Calls come
    from any thread, with the device's context current, and for one stream one at a time."""

    def prepare(self, stream: int, direction: Direction) -> None:
        """Make ready what copies in this stream will need."""

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:
        """Queue all copies of the batch, which have no order among themselves.

        Args:
            source_final: the source may be read before what is queued ahead in the stream has ended.

        Raises:
            Exception: some of them could not be queued; what was reserved for them is released, or is safe to use for
                what is queued in this stream later.
        """

    def counts(self) -> Mapping[str, EngineCount]:
        """The ways of copying by name, and what each has done so far."""

    def close(self) -> None:
        """Free everything; all copies have ended."""


@dataclass(slots=True)
class Leftovers:
    """What ended copies leave, to be let go where no lock is held: a destructor may call anything."""

    reservations: list[Reservation] = field(default_factory=list)
    owners: list[object] = field(default_factory=list)

    def let_go(self) -> None:
        for reservation in self.reservations:
            reservation.release()
        self.reservations.clear()
        self.owners.clear()


class Shared:
    """Everything but its streams that a :class:`~asyncoffload.device.cuda.device.CudaDevice` consists of.

    Attributes:
        lock: for bookkeeping alone; no call of the driver is made under it.
        changed: notified when a piece was launched or has ended, a copy has ended, or a thread is done with launching.
        closed: nothing more is taken.
        lost: why the device takes no further work.
    """

    def __init__(
        self,
        driver: Driver,
        context: int,
        launcher: Launcher,
        *,
        pinned: bool,
        current_stream: Callable[[], int],
        clock: Callable[[], float],
        window_bytes: int,
        piece_bytes: int,
        seams: Int64s | None = None,
    ) -> None:
        self.driver = driver
        self.context = context
        self.launcher = launcher
        self.pinned = pinned
        self.current_stream = current_stream
        self.clock = clock
        self.window_bytes = window_bytes
        self.piece_bytes = piece_bytes
        self.seams = seams
        self.marks = MarkPool(driver)
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.queues: list[LaunchQueue] = []
        self.closed = False
        self.lost: DeviceError | None = None

    def bound(self) -> Bound:
        """A ``with`` block in which calls of the driver can be made on this thread."""
        return Bound(self.driver, self.context)

    def require_open(self) -> None:
        """Refuse new work where none can be taken.

        Raises:
            ClosedError: the device was closed.
            DeviceError: it was lost.
        """
        if self.closed:
            raise ClosedError("the device was closed")
        if self.lost is not None:
            raise DeviceError(
                f"the device takes no further work in this process, which has to be started anew: {self.lost}",
                code=self.lost.code,
                lost=True,
            ) from self.lost

    def lose(self, cause: DeviceError) -> None:
        """Earlier work failed, and with it the context: whatever is queued or under way ends with this error."""
        error = DeviceError(f"the device failed under its copies: {cause}", code=cause.code, lost=True)
        error.__cause__ = cause
        leftovers = Leftovers()
        with self.lock:
            if self.lost is None:
                self.lost = error
            for queue in self.queues:
                queue.abandon(self.lost, leftovers)
            self.changed.notify_all()
        leftovers.let_go()


class Bound:
    """The device's context current on this thread, and after it again what was: torch takes it for its own choice."""

    __slots__ = ("_context", "_driver", "_previous")

    def __init__(self, driver: Driver, context: int) -> None:
        self._driver = driver
        self._context = context
        self._previous = context

    def __enter__(self) -> None:
        self._previous = self._driver.bind(self._context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous != self._context:
            self._driver.bind(self._previous)
