"""A batch of copies in a stream, and the pieces in which it is given to the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.engines.base import Reservation
from asyncoffload.device.cuda.pools import Mark
from asyncoffload.errors import DeviceError, TransferError

if TYPE_CHECKING:
    from asyncoffload.device.cuda.launch_queue import LaunchQueue


class Piece:
    """What is launched at once of a copy.

    Attributes:
        after: in other streams, the positions that come first; empty once the stream waits for them.
        behind: the marks that stand for them, and for what the submitter had given to the device.
        source_final: as :meth:`Launcher.launch` takes it.
        mark: behind it in the stream; None as long as it is not launched.
        reservation: what its launch needs until it has ended.
        over: it has ended, or is known never to run.
    """

    __slots__ = ("after", "batch", "behind", "copy", "mark", "nbytes", "over", "reservation", "source_final")

    def __init__(
        self,
        copy: CudaCopy,
        batch: CopyBatch,
        nbytes: int,
        *,
        after: dict[LaunchQueue, int],
        behind: Sequence[Mark],
        source_final: bool,
    ) -> None:
        self.copy = copy
        self.batch: CopyBatch | None = batch
        self.nbytes = nbytes
        self.after = after
        self.behind = behind
        self.source_final = source_final
        self.mark: Mark | None = None
        self.reservation: Reservation | None = None
        self.over = False

    def launch_error(self, cause: BaseException) -> DeviceError:
        """Why it could not be launched."""
        code, lost = (cause.code, cause.lost) if isinstance(cause, DeviceError) else (0, False)
        error = DeviceError(f"a copy of {self.nbytes} bytes could not be launched: {cause}", code=code, lost=lost)
        error.__cause__ = cause
        return error


class CudaCopy:
    """A batch of copies in a stream; all its attributes change under the device's lock.

    Attributes:
        position: its number in the stream, from 1.
        started: any of it was given to the driver, or is being given.
        error: why a part of it failed.
        ended_at: seconds of the device's clock, once ended; when that was noticed, not when it happened.
    """

    def __init__(
        self,
        queue: LaunchQueue,
        position: int,
        pieces: Sequence[tuple[CopyBatch, int]] = (),
        keep_alive: object = None,
        before: Mark | None = None,
    ) -> None:
        self.position = position
        self.started = False
        self.error: TransferError | None = None
        self.ended_at = 0.0
        self._queue = queue
        self._to_go = deque(pieces)
        self._keep_alive = keep_alive
        self._after: dict[LaunchQueue, int] = {}  # in other streams, the positions that come first
        self._before = before  # what the submitter had given to the device
        self._running = 0  # pieces in the driver's hands
        self._last: Piece | None = None
        self._cut_short = False
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether nothing touches its memory any more, and nothing will. Asks the device; never blocks for it."""
        if not self._over:
            self._queue.look(self)
        return self._over

    @property
    def complete(self) -> bool:
        """Whether it has ended and every byte was copied."""
        return self.ended and self.error is None and not self._cut_short

    def __repr__(self) -> str:
        if self._over:
            state = "ended early" if self._cut_short else "ended"
        else:
            state = f"{len(self._to_go)} pieces to go, {self._running} launched"
        return f"CudaCopy({self.position}, {state}{f', {self.error}' if self.error else ''})"
