"""Stores and loads between device blocks and the slots of host memory."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import BatchCopy
from asyncoffload.device.cpu import Copy, CPUCopyEngine, CPUEvent, CPUStream
from asyncoffload.device.poller import EventPoller
from asyncoffload.errors import (
    ClosedError,
    InvalidArgument,
    TierUnavailable,
    TransferError,
    TransferNotFinished,
    WrongLoopError,
)
from asyncoffload.memory.region import HostRegion, SlotHold
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVLayout, TransferResult, TransferSpec
from asyncoffload.workers.addressing import Fragments, KVAddresses
from asyncoffload.workers.base import OffloadingHandler, Transfer

_log = logging.getLogger(__name__)


class _Direction:
    """One direction: its stream, its transfers in flight, and which of them touched each block and slot last."""

    def __init__(self, media: tuple[str, str], stream: CPUStream, n_blocks: int, n_slots: int) -> None:
        self.media = media
        self.stream = stream
        self.in_flight: deque[DeviceHostTransfer] = deque()
        self._block_position = [0] * n_blocks
        self._slot_position = [0] * n_slots

    def position_touching(self, fragments: Fragments) -> int:
        """The stream position of the last transfer that touches one of the fragments' blocks or slots; 0: none."""
        blocks = map(self._block_position.__getitem__, fragments.blocks)
        return max(chain(blocks, map(self._slot_position.__getitem__, fragments.slots)), default=0)

    def launch(
        self, fragments: Fragments, make_batch: Callable[[], CopyBatch], keep_alive: object
    ) -> tuple[Copy, CPUEvent]:
        """Submit a copy, mark its end, and remember what it touches. Block ids of different groups count as one."""
        copy = self.stream.copy(make_batch, keep_alive=keep_alive)
        event = CPUEvent()
        event.record(self.stream)
        position, by_block, by_slot = copy.position, self._block_position, self._slot_position
        for block in fragments.blocks:
            by_block[block] = position
        for slot in fragments.slots:
            by_slot[slot] = position
        return copy, event

    def pop_ended(self) -> list[DeviceHostTransfer]:
        """Take out the oldest transfers as far as they have ended."""
        ended: list[DeviceHostTransfer] = []
        while self.in_flight and self.in_flight[0]._copy.ended:
            ended.append(self.in_flight.popleft())
        return ended


class DeviceHostTransfer(Transfer):
    """A store or a load of :class:`DeviceHostHandler`."""

    def __init__(
        self, handler: DeviceHostHandler, job_id: int, direction: _Direction, nbytes: int, since: float
    ) -> None:
        self.job_id = job_id
        self.nbytes = nbytes
        self._handler = handler
        self._direction = direction
        self._since = since
        self._claimed = False
        self._result: TransferResult | None = None
        self._hold: SlotHold
        self._copy: Copy
        self._event: CPUEvent

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

    def __await__(self) -> Generator[Any, None, TransferResult]:
        return self._handler._await_end(self).__await__()

    def __repr__(self) -> str:
        state = "in flight" if self._result is None else "done" if self._result.success else "failed"
        return f"DeviceHostTransfer({self.job_id}, {' to '.join(self._direction.media)}, {self.nbytes} bytes, {state})"


class DeviceHostHandler(OffloadingHandler):
    """Stores device blocks into slots of a region, and loads them back, for KV caches in host memory.

    The two directions are independent of each other, except where they touch the same device block or slot: there,
    the order of submission holds. Plain methods may be called from any thread.

    Args:
        kv_caches, region, layout, slot_offset: as :class:`KVAddresses` describes them.
        copy_threads: threads that copy, at least 1.
        batch_copy: performs copies in those threads; by default the fastest way this process may use.

    Raises:
        InvalidArgument: tensors, region and layout do not fit each other, or there is no thread.
    """

    def __init__(
        self,
        kv_caches: Sequence[Sequence[torch.Tensor]],
        region: HostRegion,
        layout: KVLayout,
        *,
        slot_offset: int = 0,
        copy_threads: int = 2,
        batch_copy: BatchCopy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = KVAddresses(kv_caches, region, layout, slot_offset=slot_offset)
        self._region = region
        self._clock = clock
        self._engine = CPUCopyEngine(copy_threads, batch_copy=batch_copy, clock=clock)
        self._poller = EventPoller(clock)
        device, host = GPULoadStoreSpec.medium(), CPULoadStoreSpec.medium()
        counts = (self._addresses.max_blocks, region.n_slots)
        self._stores = _Direction((device, host), self._engine.stream("stores"), *counts)
        self._loads = _Direction((host, device), self._engine.stream("loads"), *counts)
        self._lock = threading.Lock()
        self._in_flight: dict[int, DeviceHostTransfer] = {}
        self._unclaimed: dict[DeviceHostTransfer, TransferResult] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._at_rest = False

    def submit(self, job_id: int, spec: TransferSpec) -> DeviceHostTransfer:
        loop = _running_loop()
        if loop is not None:
            self._bind(loop)
        source, destination = spec
        if isinstance(source, GPULoadStoreSpec) and isinstance(destination, CPULoadStoreSpec):
            fragments = self._addresses.store(source, destination)
            return self._launch(job_id, self._stores, self._loads, fragments, fragments.store)
        if isinstance(source, CPULoadStoreSpec) and isinstance(destination, GPULoadStoreSpec):
            fragments = self._addresses.load(source, destination)
            return self._launch(job_id, self._loads, self._stores, fragments, fragments.load)
        raise InvalidArgument(
            f"this handler serves GPU to CPU and CPU to GPU, not {source.medium()} to {destination.medium()}"
        )

    def poll(self) -> int:
        with self._lock:
            ended: list[DeviceHostTransfer] = []
            # Again until nothing is new: what ended before something seen here has then been seen, too.
            while fresh := [*self._stores.pop_ended(), *self._loads.pop_ended()]:
                ended += fresh
            if len(ended) > 1:
                ended.sort(key=lambda transfer: transfer._copy.ended_at)
            for transfer in ended:
                self._retire(transfer)
        return len(ended)

    def synchronize(self, job_ids: Iterable[int]) -> None:
        for transfer in self._of(job_ids):
            with suppress(TransferError):  # told by the transfer's result
                transfer._event.synchronize()
        self.poll()

    async def wait(self, job_ids: Iterable[int]) -> None:
        for transfer in self._of(job_ids):
            await self._watch(transfer)
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
        return (
            f"DeviceHostHandler({len(self._stores.in_flight)} stores and {len(self._loads.in_flight)} loads in flight"
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
        direction: _Direction,
        opposite: _Direction,
        fragments: Fragments,
        make_batch: Callable[[], CopyBatch],
    ) -> DeviceHostTransfer:
        with self._lock:
            if self._closed:
                raise ClosedError("the handler was closed and takes no transfers")
            if job_id in self._in_flight:
                raise InvalidArgument(f"job {job_id} is in flight: ids may be used again once their job has ended")
            transfer = DeviceHostTransfer(self, job_id, direction, fragments.total_bytes, self._clock())
            transfer._hold = hold = self._region.hold_known(fragments.slots)
            hold.__enter__()
            try:
                if opposite.in_flight:
                    direction.stream.wait_for(opposite.stream, opposite.position_touching(fragments))
                transfer._copy, transfer._event = direction.launch(fragments, make_batch, self._addresses)
            except BaseException:
                hold.__exit__(None, None, None)
                raise
            direction.in_flight.append(transfer)
            self._in_flight[job_id] = transfer
        return transfer

    def _retire(self, transfer: DeviceHostTransfer) -> None:
        """Give the slots back and make the result known; the lock is held."""
        copy = transfer._copy
        error = copy.error
        if error is None and not copy.complete:
            error = TransferError("it was stopped before its end")
        transfer._hold.__exit__(None, None, None)
        nbytes = transfer.nbytes if error is None else 0
        seconds = copy.ended_at - transfer._since
        transfer._result = TransferResult(
            transfer.job_id, error is None, nbytes, seconds, transfer._direction.media, error
        )
        del self._in_flight[transfer.job_id]
        if not transfer._claimed:
            self._unclaimed[transfer] = transfer._result

    async def _await_end(self, transfer: DeviceHostTransfer) -> TransferResult:
        self._claim(transfer)
        if not transfer.done():
            try:
                await outlive(self._watch(transfer), lambda: self._stop(transfer))
            finally:
                self.poll()  # a cancelled owner, too, leaves with the slots given back
        return transfer.result()

    def _claim(self, transfer: DeviceHostTransfer) -> None:
        """Its owner gets the result: it is not for :meth:`get_finished`."""
        with self._lock:
            transfer._claimed = True
            self._unclaimed.pop(transfer, None)

    def _watch(self, transfer: DeviceHostTransfer) -> asyncio.Future[TransferError | None]:
        self._bind(_running_loop())
        return self._poller.watch(
            transfer._event,
            stream=transfer._direction.media,
            position=transfer._copy.position,
            nbytes=transfer.nbytes,
        )

    def _stop(self, transfer: DeviceHostTransfer) -> None:
        if transfer._result is None and not self._withdraw(transfer):
            transfer._direction.stream.stop(transfer._copy)

    def _withdraw(self, transfer: DeviceHostTransfer) -> bool:
        """Take a transfer back if it has not started. Waiting tasks of this handler's loop learn it at once."""
        with self._lock:
            if not transfer._direction.stream.withdraw(transfer._copy):
                return False
            transfer._direction.in_flight.remove(transfer)
            self._retire(transfer)
        self._poller.withdrawn(transfer._event)
        return True

    def _drop_queued(self) -> None:
        for transfer in tuple(self._in_flight.values()):
            self._withdraw(transfer)

    def _of(self, job_ids: Iterable[int]) -> list[DeviceHostTransfer]:
        with self._lock:
            return [self._in_flight[job_id] for job_id in job_ids if job_id in self._in_flight]

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        for transfer in tuple(self._loads.in_flight):
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
        self._engine.close()
        self._at_rest = True


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # a step-driven caller has none, and an exception in each call costs too much
