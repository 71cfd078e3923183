"""Marks behind copies, with the surface of ``torch.cuda.Event``."""

from __future__ import annotations

from typing import Any

from asyncoffload.device.cuda.copy import CudaCopy
from asyncoffload.device.cuda.shared import Shared
from asyncoffload.device.cuda.stream import CudaStream
from asyncoffload.errors import DeviceError, InvalidArgument


class CudaEvent:
    """A mark behind the last copy of a stream. Made by :meth:`CudaDevice.event`; it owns nothing of the driver's.

    It has passed when that copy has ended; a copy that was withdrawn ends at once, whatever lies before it.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._copy: CudaCopy | None = None

    def record(self, stream: CudaStream, /) -> None:
        """Mark everything submitted to the stream so far, launched or not.

        Raises:
            InvalidArgument: it is not a stream of this device.
        """
        if not isinstance(stream, CudaStream) or stream._shared is not self._shared:
            raise InvalidArgument(f"an event marks copies in a stream of its own device, not in {stream!r}")
        self._copy = stream._last

    def query(self) -> bool:
        """Whether the marked copy has ended; True when nothing was recorded. Never blocks for the device.

        Raises:
            TransferError: it has ended by failing; :class:`DeviceError` with ``lost`` if the whole device has failed.
        """
        copy = self._copy
        if copy is None:
            return True
        ended = copy.ended
        if ended and copy.error is not None:
            raise copy.error
        return ended

    def synchronize(self) -> None:
        """Block the thread, without the GIL, until the marked copy has ended.

        Raises:
            TransferError: as :meth:`query`.
        """
        if self._copy is not None:
            self._copy._queue.join(self._copy)
        self.query()

    def wait(self, stream: Any, /) -> None:
        """Make what is submitted to a stream from now on start after the marked copy; nothing when not recorded.

        For a stream of the driver this blocks the thread, without the GIL, until the copy is launched as a whole:
        only then the device can be told to wait for it.

        Args:
            stream: a stream of torch, the handle of any stream of the driver, or a :class:`CudaStream`.

        Raises:
            TransferError: the copy is known to have failed.
            InvalidArgument: the stream is being captured into a graph, which cannot wait for work outside of it.
            DeviceError: the driver refuses.
        """
        copy = self._copy
        if copy is None:
            return
        if isinstance(stream, CudaStream):
            if stream._shared is not self._shared:
                raise InvalidArgument(f"{stream!r} can wait for copies of its own device alone, not for {copy!r}")
            stream._queue.wait_for(copy._queue, copy.position)
            return
        if not copy._over:
            with self._shared.bound():
                self._wait_in(stream if isinstance(stream, int) else int(stream.cuda_stream), copy)
        if copy.error is not None:
            raise copy.error

    def _wait_in(self, handle: int, copy: CudaCopy) -> None:
        shared, driver = self._shared, self._shared.driver
        if driver.is_capturing(handle):
            raise InvalidArgument(
                f"stream {handle:#x} is being captured into a CUDA graph, which cannot wait for {copy!r}: make the "
                "stream wait before the capture, or before the graph is launched"
            )
        mark = copy._queue.mark_behind(copy)
        try:
            if mark is not None:
                driver.stream_wait_event(handle, mark.handle)
        except DeviceError as error:
            if error.lost:
                shared.lose(error)
            raise
        finally:
            if mark is not None:
                shared.marks.give_back(mark)

    def __repr__(self) -> str:
        return f"CudaEvent({self._copy!r})"
