"""Stores and loads between device blocks and the slots of host memory."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import CopyDevice, EngineCount
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.device.poller import EventPoller, PollerStats
from asyncoffload.errors import ClosedError, InvalidArgument, TierUnavailable, TransferError, WrongLoopError
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVLayout, TransferResult, TransferSpec
from asyncoffload.workers.addressing import Fragments, KVAddresses
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.caches import LayerCache, tensors_of
from asyncoffload.workers.lanes import Lane
from asyncoffload.workers.transfers import DeviceHostTransfer, Launched

BULK_BYTES = 8 << 20
"""Where large transfers begin: what a fast link moves in a quarter of a millisecond."""

_log = logging.getLogger(__name__)


class DeviceHostHandler(OffloadingHandler):
    """Stores device blocks into slots of a region, and loads them back.

    Each direction has two lanes: one for transfers of up to ``bulk_bytes``, and one for larger ones, so that a small
    transfer does not wait for a large one. Lanes are independent of each other, except where they touch the same
    device block or slot: there, the order of submission holds. Plain methods may be called from any thread.

    Args:
        kv_caches, region, layout, slot_offset, layer_order: as :class:`KVAddresses` describes them. Layers are
            numbered as ``layer_order`` says.
        device: performs the copies, and is closed with the handler; by default threads of this process, for KV caches
            in host memory. :func:`~asyncoffload.workers.devices.device_for` makes the one that suits the caches.
        bulk_bytes: transfers of more bytes than this go to the lanes of the large.

    Raises:
        InvalidArgument: tensors, region and layout do not fit each other, or the device does not reach the tensors.
    """

    def __init__(
        self,
        kv_caches: Sequence[Sequence[LayerCache]],
        region: HostRegion,
        layout: KVLayout,
        *,
        slot_offset: int = 0,
        layer_order: Sequence[tuple[int, int]] | None = None,
        device: CopyDevice | None = None,
        bulk_bytes: int = BULK_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = KVAddresses(kv_caches, region, layout, slot_offset=slot_offset, layer_order=layer_order)
        self._region = region
        self._clock = clock
        self._bulk_bytes = bulk_bytes
        self._device = CPUDevice(clock=clock) if device is None else device
        _require_reach(self._device, tensors_of(kv_caches))
        self._poller = EventPoller(clock)
        gpu, cpu = GPULoadStoreSpec.medium(), CPULoadStoreSpec.medium()
        make = partial(Lane, self._device, n_blocks=self._addresses.max_blocks, n_slots=region.n_slots)
        self._stores = (make("store", "stores", (gpu, cpu)), make("store", "bulk stores", (gpu, cpu)))
        self._loads = (make("load", "loads", (cpu, gpu)), make("load", "bulk loads", (cpu, gpu)))
        self._lanes = self._stores + self._loads
        self._lock = threading.Lock()
        self._in_flight: dict[int, DeviceHostTransfer] = {}
        self._unclaimed: dict[DeviceHostTransfer, TransferResult] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._at_rest = False

    def submit(self, job_id: int, spec: TransferSpec, *, by_layer: bool = False) -> DeviceHostTransfer:
        loop = _running_loop()
        if loop is not None:
            self._bind(loop)
        source, destination = spec
        if isinstance(source, GPULoadStoreSpec) and isinstance(destination, CPULoadStoreSpec):
            fragments = self._addresses.store(source, destination)
            return self._launch(job_id, self._stores, fragments, [(fragments.store, fragments.total_bytes)])
        if isinstance(source, CPULoadStoreSpec) and isinstance(destination, GPULoadStoreSpec):
            fragments = self._addresses.load(source, destination)
            if not by_layer:
                return self._launch(job_id, self._loads, fragments, [(fragments.load, fragments.total_bytes)])
            parts = fragments.load_by_layer()
            copies = [(part.batch, part.nbytes) for part in parts]
            return self._launch(job_id, self._loads, fragments, copies, [part.end for part in parts])
        raise InvalidArgument(
            f"this handler serves GPU to CPU and CPU to GPU, not {source.medium()} to {destination.medium()}"
        )

    def engines(self) -> Mapping[str, EngineCount]:
        """The ways of copying that the device chose among, and what each has done so far."""
        return self._device.engines()

    def polling(self) -> PollerStats:
        """What waiting for transfers on the event loop has cost, and how late their ends were noticed."""
        return self._poller.stats()

    def poll(self) -> int:
        with self._lock:
            ended: list[DeviceHostTransfer] = []
            seen = -1
            # Again until nothing is new: what ended before something seen here has then been seen, too.
            while seen < len(ended):
                seen = len(ended)
                for lane in self._lanes:
                    if lane.in_flight:
                        lane.pop_ended(ended)
            if len(ended) > 1:
                ended.sort(key=lambda transfer: transfer._parts[-1].copy.ended_at)
            for transfer in ended:
                self._retire(transfer)
        return len(ended)

    def synchronize(self, job_ids: Iterable[int]) -> None:
        for transfer in self._of(job_ids):
            for part in transfer._parts:
                with suppress(TransferError):  # told by the transfer's result
                    part.event.synchronize()
        self.poll()

    async def wait(self, job_ids: Iterable[int]) -> None:
        for transfer in self._of(job_ids):
            await self._end_of(transfer)
        self.poll()

    def get_finished(self) -> list[TransferResult]:
        self.poll()
        with self._lock:
            finished = list(self._unclaimed.values())
            self._unclaimed.clear()
        return finished

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        self._bind(_running_loop())
        with self._lock:  # a submit on another thread is in flight before, or is refused after
            self._closed = True
        if self._closing is None or (self._closing.done() and not self._at_rest):
            self._closing = asyncio.create_task(self._close(drain, drain_timeout, timeout))
        await outlive(self._closing, self._drop_queued)

    def __repr__(self) -> str:
        stores, loads = (sum(len(lane.in_flight) for lane in lanes) for lanes in (self._stores, self._loads))
        return (
            f"DeviceHostHandler({stores} stores and {loads} loads in flight on {self._device!r}"
            f"{', closed' if self._closed else ''})"
        )

    def _bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Make this the handler's loop. Without a running loop the caller drives the handler in steps."""
        if self._loop is None:
            self._loop = loop
        elif loop is not None and self._loop is not loop:
            raise WrongLoopError("the handler belongs to another event loop: make one per loop")

    def _launch(
        self,
        job_id: int,
        lanes: tuple[Lane, Lane],
        fragments: Fragments,
        copies: Sequence[tuple[Callable[[], CopyBatch], int]],
        layer_ends: Sequence[int] = (),
    ) -> DeviceHostTransfer:
        lane = lanes[fragments.total_bytes > self._bulk_bytes]
        n_layers = self._addresses.n_layers
        with self._lock:
            if self._closed:
                raise ClosedError("the handler was closed and takes no transfers")
            if job_id in self._in_flight:
                raise InvalidArgument(f"job {job_id} is in flight: ids may be used again once their job has ended")
            transfer = DeviceHostTransfer(
                self, job_id, lane, fragments.total_bytes, self._clock(), n_layers=n_layers, layer_ends=layer_ends
            )
            transfer._hold = hold = self._region.hold_known(fragments.slots)
            hold.__enter__()
            try:
                for other in self._lanes:
                    if other.in_flight and other is not lane:
                        lane.wait_for(other, fragments)
                transfer._parts = lane.launch(fragments, copies, self._addresses)
            except BaseException:
                hold.__exit__(None, None, None)
                raise
            lane.in_flight.append(transfer)
            self._in_flight[job_id] = transfer
        return transfer

    def _retire(self, transfer: DeviceHostTransfer) -> None:
        """Give the slots back and make the result known; the lock is held."""
        error = transfer._outcome()
        transfer._hold.__exit__(None, None, None)
        nbytes = transfer.nbytes if error is None else 0
        seconds = transfer._parts[-1].copy.ended_at - transfer._since
        transfer._result = TransferResult(transfer.job_id, error is None, nbytes, seconds, transfer._lane.media, error)
        del self._in_flight[transfer.job_id]
        if not transfer._claimed:
            self._unclaimed[transfer] = transfer._result

    async def _await_end(self, transfer: DeviceHostTransfer) -> TransferResult:
        self._claim(transfer)
        if not transfer.done():
            try:
                await outlive(self._end_of(transfer), lambda: self._stop(transfer))
            finally:
                self.poll()  # a cancelled owner, too, leaves with the slots given back
        return transfer.result()

    def _claim(self, transfer: DeviceHostTransfer) -> None:
        """Its owner gets the result: it is not for :meth:`get_finished`."""
        with self._lock:
            transfer._claimed = True
            self._unclaimed.pop(transfer, None)

    def _end_of(self, transfer: DeviceHostTransfer) -> asyncio.Future[Any]:
        """A future that is done when the transfer has ended, however it has."""
        if len(transfer._parts) == 1:
            return self._watch(transfer, transfer._parts[0])
        return asyncio.ensure_future(self._watch_each(transfer))

    async def _watch_each(self, transfer: DeviceHostTransfer) -> None:
        for part in transfer._parts:
            if not part.copy.ended:
                await self._watch(transfer, part)

    def _watch(self, transfer: DeviceHostTransfer, part: Launched) -> asyncio.Future[TransferError | None]:
        self._bind(_running_loop())
        return self._poller.watch(
            part.event, stream=transfer._lane.name, position=part.copy.position, nbytes=part.nbytes
        )

    def _stop(self, transfer: DeviceHostTransfer) -> None:
        if transfer._result is None and not self._withdraw(transfer):
            transfer._lane.stop(transfer._parts)

    def _withdraw(self, transfer: DeviceHostTransfer) -> bool:
        """Take a transfer back if it has not started. Waiting tasks of this handler's loop learn it at once."""
        with self._lock:
            if transfer._result is not None or not transfer._lane.withdraw(transfer._parts):
                return False
            transfer._lane.in_flight.remove(transfer)
            self._retire(transfer)
        for part in transfer._parts:
            self._poller.withdrawn(part.event)
        return True

    def _drop_queued(self) -> None:
        for transfer in tuple(self._in_flight.values()):
            self._withdraw(transfer)

    def _of(self, job_ids: Iterable[int]) -> list[DeviceHostTransfer]:
        with self._lock:
            return [self._in_flight[job_id] for job_id in job_ids if job_id in self._in_flight]

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        for transfer in [transfer for lane in self._loads for transfer in lane.in_flight]:
            self._withdraw(transfer)
        if drain:
            try:
                async with asyncio.timeout(drain_timeout):
                    await self.wait(tuple(self._in_flight))
            except TimeoutError:
                _log.warning("%r did not drain within %s s: what is queued is dropped", self, drain_timeout)
        self._drop_queued()
        try:
            async with asyncio.timeout(timeout):
                await self.wait(tuple(self._in_flight))
        except TimeoutError:
            raise TierUnavailable(
                f"jobs {sorted(self._in_flight)} still run after {timeout} s: the handler cannot be closed under them"
            ) from None
        self._poller.close()
        self._device.close()
        self._at_rest = True


def _require_reach(device: CopyDevice, groups: Sequence[Sequence[torch.Tensor]]) -> None:
    for group, tensors in enumerate(groups):
        for index, tensor in enumerate(tensors):
            if not device.reaches(tensor.device):
                raise InvalidArgument(
                    f"tensor {index} of group {group} lies on {tensor.device}, which {device!r} does not reach: "
                    "pass a device of the tensors' own kind, as workers.devices.device_for makes it"
                )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # a step-driven caller has none, and an exception in each call costs too much
