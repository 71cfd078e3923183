"""A handler without threads: what happens is the same in every run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import ClosedError, TransferError, TransferNotFinished
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import GPULoadStoreSpec, KVLayout, TransferResult, TransferSpec
from asyncoffload.workers.addressing import KVAddresses
from asyncoffload.workers.base import OffloadingHandler, Transfer
from asyncoffload.workers.caches import LayerCache


class TurnTransfer(Transfer):
    """A copy of one page per turn of the event loop."""

    def __init__(self, job_id: int, media: tuple[str, str], batch: CopyBatch, let_go: Callable[[], None]) -> None:
        self.job_id = job_id
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._media, self._batch, self._let_go = media, batch, let_go
        self._copied = 0
        self._stopped = False
        self._step()

    def _step(self) -> None:
        if self._stopped or self._copied == len(self._batch):
            self._let_go()
            self.ended.set_result(None)
            return
        copy_one_by_one(self._batch[self._copied : self._copied + 1])
        self._copied += 1
        asyncio.get_running_loop().call_soon(self._step)

    def done(self) -> bool:
        return self.ended.done()

    def result(self) -> TransferResult:
        if not self.done():
            raise TransferNotFinished(f"{self.job_id}")
        complete = self._copied == len(self._batch)
        error = None if complete else TransferError("it was stopped")
        return TransferResult(self.job_id, complete, transfer_type=self._media, error=error)

    def stop(self) -> None:
        self._stopped = True

    @property
    def event(self) -> DeviceEvent:
        raise NotImplementedError

    async def layer(self, index: int) -> None:
        raise NotImplementedError

    def layer_event(self, index: int) -> DeviceEvent:
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, TransferResult]:
        yield from outlive(self.ended, self.stop).__await__()
        return self.result()


class TurnHandler(OffloadingHandler):
    """Copies without threads, a page per turn of the event loop: what happens is the same in every run."""

    def __init__(self, kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion, layout: KVLayout) -> None:
        self._addresses = KVAddresses(kv_caches, region, layout)
        self._region = region
        self._in_flight: dict[int, TurnTransfer] = {}
        self._closed = False

    def submit(self, job_id: int, spec: TransferSpec, *, by_layer: bool = False) -> Transfer:  # noqa: ARG002
        if self._closed:
            raise ClosedError("closed")
        source, destination = spec
        is_store = isinstance(source, GPULoadStoreSpec)
        make: Any = self._addresses.store if is_store else self._addresses.load
        fragments = make(source, destination)
        hold = self._region.hold(fragments.slots)
        hold.__enter__()

        def let_go() -> None:
            hold.__exit__(None, None, None)
            self._in_flight.pop(job_id, None)

        batch = fragments.store() if is_store else fragments.load()
        transfer = TurnTransfer(job_id, (source.medium(), destination.medium()), batch, let_go)
        if not transfer.done():
            self._in_flight[job_id] = transfer
        return transfer

    async def wait(self, job_ids: Iterable[int]) -> None:
        ended = [self._in_flight[job_id].ended for job_id in job_ids if job_id in self._in_flight]
        if ended:
            await asyncio.wait(ended)

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:  # noqa: ARG002
        self._closed = True
        if not drain:
            for transfer in self._in_flight.values():
                transfer.stop()
        for transfer in tuple(self._in_flight.values()):
            await outlive(transfer.ended)

    def poll(self) -> int:
        return 0

    def synchronize(self, job_ids: Iterable[int]) -> None:
        raise NotImplementedError

    def get_finished(self) -> list[TransferResult]:
        return []
