"""A store or a load of a :class:`~asyncoffload.workers.device_host.DeviceHostHandler`, as its caller sees it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncoffload.device.base import Copy
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import InvalidArgument, TransferError, TransferNotFinished
from asyncoffload.types import TransferResult
from asyncoffload.workers.base import Transfer

if TYPE_CHECKING:
    from asyncoffload.memory.region import SlotHold
    from asyncoffload.workers.device_host import DeviceHostHandler
    from asyncoffload.workers.lanes import Lane


class Launched(NamedTuple):
    """A copy, and the event that marks its end."""

    copy: Copy
    event: DeviceEvent
    nbytes: int


class DeviceHostTransfer(Transfer):
    """One or more copies that follow each other in a lane.

    Args:
        layer_ends: per copy, the number of the layer behind the last one that it brings; empty where all layers come
            with the one copy.
    """

    def __init__(
        self,
        handler: DeviceHostHandler,
        job_id: int,
        lane: Lane,
        nbytes: int,
        since: float,
        *,
        n_layers: int,
        layer_ends: Sequence[int] = (),
    ) -> None:
        self.job_id = job_id
        self.nbytes = nbytes
        self._handler = handler
        self._lane = lane
        self._since = since
        self._n_layers = n_layers
        self._layer_ends = layer_ends
        self._claimed = False
        self._result: TransferResult | None = None
        self._hold: SlotHold
        self._parts: Sequence[Launched]

    @property
    def event(self) -> DeviceEvent:
        return self._parts[-1].event

    def done(self) -> bool:
        if self._result is None:
            self._handler.poll()
        return self._result is not None

    def result(self) -> TransferResult:
        if not self.done() or self._result is None:
            raise TransferNotFinished(f"transfer {self.job_id} has not ended: await it, or ask done() first")
        self._handler._claim(self)
        return self._result

    def stop(self) -> None:
        self._handler._stop(self)

    async def layer(self, index: int) -> None:
        until = self._until(index)
        for part in until:
            if not part.copy.ended:
                await self._handler._watch(self, part)
        error = _failure(until)
        if error is not None:
            raise error

    def layer_event(self, index: int) -> DeviceEvent:
        return LayerEvent(self._until(index))

    def __await__(self) -> Generator[Any, None, TransferResult]:
        return self._handler._await_end(self).__await__()

    def __repr__(self) -> str:
        state = "in flight" if self._result is None else "done" if self._result.success else "failed"
        how = f"{self.nbytes} bytes, in {len(self._parts)} parts" if self._layer_ends else f"{self.nbytes} bytes"
        return f"DeviceHostTransfer({self.job_id}, {' to '.join(self._lane.media)}, {how}, {state})"

    def _until(self, index: int) -> Sequence[Launched]:
        """The copies up to the one that brings a layer."""
        if not 0 <= index < self._n_layers:
            raise InvalidArgument(f"layer {index} does not exist: there are {self._n_layers}, numbered from 0")
        return self._parts[: bisect_right(self._layer_ends, index) + 1]

    def _all_ended(self) -> bool:
        # The last first: those before it have ended if it has, unless it was taken back.
        parts = self._parts
        return parts[-1].copy.ended and (len(parts) == 1 or all(part.copy.ended for part in parts))

    def _outcome(self) -> TransferError | None:
        """Why not every byte arrived, of a transfer that has ended."""
        return _failure(self._parts)


class LayerEvent:
    """Marks the end of a layer: of the copy that brings it, and of those before it in the transfer."""

    def __init__(self, until: Sequence[Launched]) -> None:
        self._until = until

    def record(self, stream: object, /) -> None:
        """Refused: the event belongs to a transfer.

        Raises:
            InvalidArgument: always.
        """
        raise InvalidArgument(f"the event of a layer is recorded by its transfer, not in {stream!r}")

    def query(self) -> bool:
        """Whether the layer has arrived.

        Raises:
            TransferError: it, or one before it, failed or was stopped.
        """
        if not all(part.copy.ended for part in self._until):
            return False
        error = _failure(self._until)
        if error is not None:
            raise error
        return True

    def synchronize(self) -> None:
        """Block this thread, without the GIL, until the layer has arrived; raises as :meth:`query`."""
        for part in self._until:
            part.event.synchronize()
        self.query()

    def wait(self, stream: Any, /) -> None:
        """Make what is submitted to the stream from now on wait for the layer.

        The device cannot be told of a failure: ask for the result of the transfer before what was computed is used.

        Raises:
            TransferError: the layer is known to have failed by now.
        """
        error = _failure([part for part in self._until if part.copy.ended])
        if error is not None:
            raise error
        self._until[-1].event.wait(stream)


def _failure(parts: Sequence[Launched]) -> TransferError | None:
    """Why one of these copies, which have ended, did not bring every byte."""
    for part in parts:
        if part.copy.error is not None:
            return part.copy.error
        if not part.copy.complete:
            return TransferError("it was stopped before its end")
    return None
