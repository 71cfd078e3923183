"""How a whole request moves: in stretches, so that it may be larger than host memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from asyncoffload.errors import CapacityError, ClosedError, TransferError
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.offloader.accounts import CopyAccount
from asyncoffload.offloader.addressing import DeviceBlocks
from asyncoffload.offloader.arrival import LayerArrival
from asyncoffload.offloader.copies import Copies
from asyncoffload.offloader.pipeline import Stretch, pipeline
from asyncoffload.offloader.results import LoadResult, StoreResult
from asyncoffload.types import Priority, RequestContext, Status
from asyncoffload.workers.worker import OffloadingWorker

WINDOW_SLICES = 4


class Mover:
    """Moves requests between device blocks, the primary and the tiers; their keys are checked.

    Args:
        manager: secures slots.
        worker: copies.
        accounts: where copies are counted, by direction.
        n_slots: of the primary.
        slice_blocks: blocks that are moved in one piece.
    """

    def __init__(
        self,
        manager: TieringOffloadingManager,
        worker: OffloadingWorker,
        accounts: Mapping[str, CopyAccount],
        *,
        n_slots: int,
        slice_blocks: int,
    ) -> None:
        self._manager = manager
        self._worker = worker
        self._accounts = accounts
        self._slice = min(slice_blocks, n_slots)
        self._half = max(1, n_slots // 2)
        self._window = min(WINDOW_SLICES * self._slice, self._half)
        self._writing = 0
        self._written = asyncio.Event()
        self._closed = False

    async def load(
        self, keys: Sequence[OffloadKey], blocks: DeviceBlocks, ctx: RequestContext, arrival: LayerArrival | None
    ) -> LoadResult:
        """Bring the longest prefix that can be had into device blocks."""
        window = self._window if arrival is None else self._half
        by_tier: Counter[str] = Counter()
        start, stopped_by = 0, None
        async with pipeline(partial(self._load_stretch, blocks, ctx, arrival)) as stretches:
            while start < len(keys) and stopped_by is None:
                got = await stretches.advance(Stretch(keys[start : start + window], start))
                start += got.blocks
                by_tier.update(got.by_tier)
                stopped_by = got.stopped_by
                if stopped_by is Status.SHED and got.blocks:
                    # Out of slots, not out of blocks: go on with those that this stretch gives back.
                    stopped_by = None
                    await stretches.drain()
            result = LoadResult(start, dict(by_tier), stopped_by)
            if arrival is not None:
                arrival.complete(result)
        return result

    async def prefetch(self, keys: Sequence[OffloadKey], ctx: RequestContext) -> LoadResult:
        """Bring the longest prefix that can be had into the primary, up to half of it."""
        # More would push out what a prefetch has just brought, and what others use.
        keys = keys[: self._half]
        patient = replace(ctx, priority=max(ctx.priority, Priority.PREFETCH))
        by_tier: Counter[str] = Counter()
        start, stopped_by = 0, None
        while start < len(keys) and stopped_by is None:
            window = keys[start : start + self._window]
            async with self._manager.loading(window, replace(patient, depth=start)) as lease:
                start += len(lease.keys)
                by_tier.update(lease.by_tier)
                stopped_by = lease.stopped_by
        return LoadResult(start, dict(by_tier), stopped_by)

    async def store(self, keys: Sequence[OffloadKey], blocks: DeviceBlocks, ctx: RequestContext) -> StoreResult:
        """Copy those of the blocks that are absent into the primary."""
        absent = self._manager.absent(keys)
        positions = {key: position for position, key in enumerate(keys)}
        stored = seen = 0
        async with pipeline(partial(self._store_stretch, blocks, positions, ctx)) as stretches:
            while seen < len(absent):
                part = await stretches.advance(Stretch(absent[seen : seen + self._slice], seen))
                if part.stopped_by is not None:
                    break
                seen += len(part.keys)
                stored += part.blocks
        await self._manager.touch(keys, ctx)
        return StoreResult(stored, len(keys) - len(absent) + seen - stored, len(absent) - seen)

    async def aclose(self, *, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        """End the copies, and wait until what they stored counts: the manager may still have to cascade it."""
        self._closed = True
        await self._worker.aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)
        while self._writing:
            self._written.clear()
            await self._written.wait()

    async def _load_stretch(
        self, blocks: DeviceBlocks, ctx: RequestContext, arrival: LayerArrival | None, stretch: Stretch
    ) -> None:
        """Promote the keys of a stretch, and copy each part to the device as it arrives."""
        end = stretch.start
        ctx = replace(ctx, depth=stretch.start)
        async with self._manager.loading(stretch.keys, ctx, streaming=True) as lease, self._copies() as copies:
            async for part in lease.parts():
                start, end = end, end + len(part.keys)
                device, host = blocks.specs(slice(start, end), part.spec)
                transfer = copies.submit(host, device, by_layer=arrival is not None)
                if arrival is not None:
                    arrival.launched(transfer)
            stretch.secure(len(lease.keys), by_tier=lease.by_tier, stopped_by=lease.stopped_by)

    async def _store_stretch(
        self, blocks: DeviceBlocks, positions: Mapping[OffloadKey, int], ctx: RequestContext, stretch: Stretch
    ) -> None:
        """Copy those of the keys of a stretch that are absent into the primary."""
        ctx = replace(ctx, depth=positions[stretch.keys[0]])
        try:
            async with self._manager.storing(stretch.keys, ctx, wait=True) as lease:
                stretch.secure(len(lease.keys))
                if lease.keys:
                    device, host = blocks.specs([positions[key] for key in lease.keys], lease.spec)
                    self._writing += 1
                    try:
                        async with self._copies() as copies:
                            copies.submit(device, host)
                    finally:
                        self._writing -= 1
                        self._written.set()
        except CapacityError:
            stretch.secure(0, stopped_by=Status.SHED)

    @asynccontextmanager
    async def _copies(self) -> AsyncIterator[Copies]:
        """Copies under a lease; those that end because of the closing say so."""
        try:
            async with Copies(self._worker, self._accounts) as copies:
                yield copies
        except TransferError as error:
            if self._closed:
                raise closed_error() from error
            raise


def closed_error() -> ClosedError:
    """What calls of a closed offloader raise."""
    return ClosedError("the offloader was closed and takes no new work: open another one")
