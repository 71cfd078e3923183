"""Handlers move blocks between two media; transfers are what they hand out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from asyncoffload.device.base import EngineCount
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import TransferError
from asyncoffload.types import TransferResult, TransferSpec


class Transfer(ABC):
    """A submitted transfer. It has one owner, who may await it; others use :meth:`OffloadingHandler.wait`.

    Awaiting gives the :class:`TransferResult`, also when the transfer failed. Cancellation of the awaiting task stops
    the transfer, whose memory belongs to the caller: still queued, it never starts; running, it ends early where the
    device can do that. Either way the await returns only when nothing touches that memory any more, then raises.
    """

    job_id: int

    @abstractmethod
    def done(self) -> bool:
        """Whether the transfer has ended: nothing touches its memory any more."""

    @abstractmethod
    def result(self) -> TransferResult:
        """How the transfer ended. Like awaiting, it claims the result: :meth:`OffloadingHandler.get_finished` will not
        report the transfer.

        Raises:
            TransferNotFinished: it has not ended.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ask the transfer to end early: still queued it never starts, running it ends where the device can do that.

        What lies at its destination is undefined then. Nothing happens to one that has ended.
        """

    @property
    @abstractmethod
    def event(self) -> DeviceEvent:
        """Marks the end: ``event.wait(stream)`` makes a compute stream wait for it without the host."""

    @abstractmethod
    async def layer(self, index: int) -> None:
        """Wait until a layer has arrived, and all before it; of a load that was not submitted by layer, the whole.

        Layers are numbered as the handler says. Cancellation ends the waiting, not the transfer.

        Raises:
            TransferError: the layer, or one before it, did not arrive.
            InvalidArgument: there is no such layer.
        """

    @abstractmethod
    def layer_event(self, index: int) -> DeviceEvent:
        """Marks the arrival of a layer, for compute streams; as :meth:`layer`.

        Raises:
            InvalidArgument: there is no such layer.
        """

    @abstractmethod
    def __await__(self) -> Generator[Any, None, TransferResult]: ...


class OffloadingHandler(ABC):
    """Moves blocks between media, asynchronously.

    Plain methods need no event loop; the coroutine methods belong to the loop that used the handler first.
    """

    @abstractmethod
    def submit(self, job_id: int, spec: TransferSpec, *, by_layer: bool = False) -> Transfer:
        """Launch a transfer from this thread, behind the work this thread has given to the device, and return at once.

        Args:
            by_layer: bring a load layer by layer, so that a model may start before all of it is there.

        Raises:
            InvalidArgument: the spec cannot be carried out, or the id is in flight; nothing was launched.
            ClosedError: the handler was closed.
            WrongLoopError: the handler belongs to another event loop.
        """

    async def transfer(self, job_id: int, spec: TransferSpec) -> TransferResult:
        """Submit and wait for the end. Cancellation: as that of :class:`Transfer`.

        Raises:
            TransferError: not every byte arrived; what lies at the destination is undefined.
            InvalidArgument, ClosedError, WrongLoopError: as :meth:`submit`.
        """
        result = await self.submit(job_id, spec)
        if not result.success:
            source, destination = result.transfer_type
            raise TransferError(
                f"transfer {job_id} from {source} to {destination} failed: {result.error}", tier=destination
            ) from result.error
        return result

    @abstractmethod
    def poll(self) -> int:
        """Take note, on this thread and without waiting, of the transfers that have ended; returns how many."""

    @abstractmethod
    def synchronize(self, job_ids: Iterable[int]) -> None:
        """Block this thread, without the GIL, until these transfers have ended; ids not in flight are ignored."""

    @abstractmethod
    async def wait(self, job_ids: Iterable[int]) -> None:
        """Wait until these transfers have ended; ids not in flight are ignored, results stay to be fetched.

        Cancellation ends the waiting, not the transfers.
        """

    @abstractmethod
    def get_finished(self) -> list[TransferResult]:
        """The transfers that ended since the last call, each exactly once, in order of completion.

        One whose owner awaited it, or took its result, does not appear here.
        """

    def engines(self) -> Mapping[str, EngineCount]:
        """The ways of copying by name, and what each has done so far; empty where that is not known. Any thread."""
        return {}

    @abstractmethod
    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new transfers, end those in flight, free the handler's threads and device objects. Idempotent.

        Queued loads are dropped, with a result. Queued stores finish within ``drain_timeout`` seconds if ``drain``,
        else they are dropped too. What runs is awaited, for up to ``timeout`` seconds.

        Cancellation drops what is queued; what runs is still awaited, then the cancellation is raised.

        Raises:
            TierUnavailable: something still runs after ``timeout``; names the jobs.
        """
