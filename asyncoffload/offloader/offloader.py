"""What a serving stack holds: look up a prefix, load it into device blocks, store new blocks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import NamedTuple, Self

from asyncoffload.aio.waiting import outlive
from asyncoffload.config import OffloaderSettings
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.errors import CapacityError, InternalError, TransferError
from asyncoffload.keys import OffloadKey, checked_keys, scoped
from asyncoffload.managers.base import DEFAULT_EVENT_CAPACITY, OffloadingManager
from asyncoffload.managers.events import EventSubscription
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.offloader.addressing import DeviceBlocks
from asyncoffload.offloader.results import LoadResult, OffloaderStats, StoreResult
from asyncoffload.offloader.wiring import KVCaches, grouped, layout_of, policy_for, region_for, tiers_for
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    GPULoadStoreSpec,
    Int32s,
    KVLayout,
    RequestContext,
    Status,
)
from asyncoffload.workers.base import Transfer
from asyncoffload.workers.device_host import DeviceHostHandler
from asyncoffload.workers.worker import OffloadingWorker

WINDOW_SLICES = 4

TierFactory = Callable[[KVLayout, memoryview], SecondaryTierManager]


class Offloader:
    """KV-cache blocks on their way between device blocks, host memory and slower tiers.

    Keys name offloaded blocks in request order; ``device_blocks`` are the ``block_size_factor`` device blocks of each
    key, in the same order. A request may be larger than host memory: it is moved in slices.

    Cancellation, also by ``asyncio.timeout`` or an anyio scope, may strike any call at any moment. Device blocks
    belong to the caller: ``load`` and ``store`` return or raise only when nothing touches them any more. A deadline in
    the context ends the waiting instead: ``load`` then returns the prefix that made it, ``store`` sheds the rest.

    Args:
        settings: or a mapping of them.
        kv_caches: the layer tensors, shape ``(num_blocks, ...)``; or one list of them per KV-cache group.
        policy: an eviction policy of one's own, instead of the one that the settings name.
        tiers: tiers of one's own, behind those of the settings: called with the layout and the primary's slots.

    Raises:
        ConfigError: settings are wrong, or do not fit the tensors.
        CapacityError: the host memory cannot be had.
    """

    def __init__(
        self,
        settings: OffloaderSettings | Mapping[str, object],
        *,
        kv_caches: KVCaches,
        policy: EvictionPolicy | None = None,
        tiers: Sequence[TierFactory] = (),
    ) -> None:
        if not isinstance(settings, OffloaderSettings):
            settings = OffloaderSettings.parse(settings)
        policy = policy or policy_for(settings)
        groups = grouped(kv_caches)
        self._layout = layout_of(settings, groups)
        self._region = region_for(settings, self._layout)
        self._tiers = tiers_for(settings, self._layout, self._region.view)
        self._tiers += [factory(self._layout, self._region.view) for factory in tiers]
        self._manager = TieringOffloadingManager(
            self._region,
            self._tiers,
            policy=policy,
            store_threshold=settings.store_threshold,
            block_size=self._layout.tokens_per_block,
            promotion_bytes=settings.promotion_bytes,
            cascade_blocks=settings.cascade_blocks,
        )
        handler = DeviceHostHandler(groups, self._region, self._layout, copy_threads=settings.copy_threads)
        self._worker = OffloadingWorker()
        self._worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
        self._worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, handler)
        self._slice = min(settings.slice_blocks, self._region.n_slots)
        self._window = max(1, min(WINDOW_SLICES * self._slice, self._region.n_slots // 2))
        self._job_ids = count(1)
        self._closed = False

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block mean, as read from settings and tensors."""
        return self._layout

    async def start(self) -> None:
        """Start the tiers, so that what is wrong with them shows now; entering the ``async with`` block does it.

        Raises:
            ConfigError, TierUnavailable: what a tier found.
        """
        for tier in self._tiers:
            await tier.start()

    # ---- the three verbs

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """How many of the leading blocks some tier holds. Advice: it moves nothing and may be outdated at once."""
        return await self._manager.lookup(_scoped(keys, ctx), ctx)

    async def load(
        self, keys: Sequence[OffloadKey], device_blocks: Sequence[int] | Int32s, ctx: RequestContext = ANONYMOUS
    ) -> LoadResult:
        """Bring the longest prefix that can be had into the device blocks.

        Blocks are copied to the device as they arrive from their tiers, while those behind them are still on the way.

        Raises:
            InvalidArgument: keys or device blocks are malformed; nothing was moved.
            TransferError: a copy to the device failed; the device blocks are undefined.
            ClosedError: the offloader was closed.

        Cancellation: returns, by raising, only when nothing touches the device blocks any more; their content is
        undefined then.
        """
        keys = _scoped(keys, ctx)
        blocks = DeviceBlocks(self._layout, keys, device_blocks)
        await self._manager.touch(keys, ctx)
        by_tier: Counter[str] = Counter()
        start, stopped_by = 0, None
        windows: list[asyncio.Task[None]] = []
        try:
            while start < len(keys) and stopped_by is None:
                window = keys[start : start + self._window]
                secured: asyncio.Future[_Secured | None] = asyncio.get_running_loop().create_future()
                windows.append(asyncio.ensure_future(self._load_window(window, start, blocks, ctx, secured)))
                got = await secured
                # While one window is copied the next may be promoted, but no more than that.
                await _ended(windows[-2:-1] if got else windows[-1:])
                if got is None:
                    raise InternalError(f"the load of {len(window)} blocks ended without a result")
                start += got.blocks
                by_tier.update(got.by_tier)
                stopped_by = got.stopped_by
                if stopped_by is Status.SHED and got.blocks:
                    # Out of slots, not out of blocks: go on with those that this window gives back.
                    stopped_by = None
                    await _ended(windows[-1:])
            await _ended(windows)
        except BaseException:
            for task in windows:
                task.cancel()
            await outlive(asyncio.gather(*windows, return_exceptions=True))
            raise
        return LoadResult(start, dict(by_tier), stopped_by)

    async def store(
        self, keys: Sequence[OffloadKey], device_blocks: Sequence[int] | Int32s, ctx: RequestContext = ANONYMOUS
    ) -> StoreResult:
        """Copy those of the blocks that are absent into host memory, and from there, later, to the slower tiers.

        All keys of a request may be passed, also those that were loaded: they count as used together. Returns when
        the device blocks may be reused. Waits for room while others hold it, until the deadline.

        Raises:
            InvalidArgument: keys or device blocks are malformed; nothing was moved.
            TransferError: a copy from the device failed; its blocks were not stored.
            ClosedError: the offloader was closed.

        Cancellation: returns, by raising, only when nothing reads the device blocks any more. Slices that were
        complete by then stay stored.
        """
        keys = _scoped(keys, ctx)
        blocks = DeviceBlocks(self._layout, keys, device_blocks)
        stored = present = shed = 0
        for start in range(0, len(keys), self._slice):
            part = keys[start : start + self._slice]
            try:
                async with self._manager.storing(part, ctx, wait=True) as lease:
                    positions = {key: start + index for index, key in enumerate(part)}
                    device, host = blocks.specs([positions[key] for key in lease.keys], lease.spec)
                    if lease.keys:
                        await self._worker.transfer(next(self._job_ids), (device, host))
                    stored += len(lease.keys)
                    present += len(part) - len(lease.keys)
            except CapacityError:
                shed = len(keys) - start
                break
        await self._manager.touch(keys, ctx)
        return StoreResult(stored, present, shed)

    # ---- the whole

    async def settle(self) -> None:
        """Wait until every block on its way to a slower tier has arrived there or was shed.

        Cancellation: leaves at once.
        """
        await self._manager.settle()

    def events(self, capacity: int = DEFAULT_EVENT_CAPACITY) -> EventSubscription:
        """Subscribe to blocks that appear in a tier or leave it, from now on: an async iterator, bounded."""
        return self._manager.events(capacity)

    def stats(self) -> OffloaderStats:
        """Where the stack stands."""
        counts = self._manager.tier_counts()
        return OffloaderStats(
            primary=self._manager.stats(),
            tiers={tier.tier_type: {**counts[tier.tier_type], **tier.stats()} for tier in self._tiers},
            slot_bytes=self._region.slot_bytes,
        )

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work, let cascades finish for up to ``drain_timeout`` seconds, give everything back. Idempotent.

        Raises:
            TierUnavailable: something still runs ``timeout`` seconds later. The memory it may touch stays mapped.

        Cancellation: what is queued is dropped, what runs is still awaited, then the cancellation is raised.
        """
        self._closed = True
        failure: BaseException | None = None
        parts: list[OffloadingManager | OffloadingWorker | SecondaryTierManager] = [self._manager, self._worker]
        for part in parts + self._tiers:
            try:
                await part.aclose(drain=drain and failure is None, drain_timeout=drain_timeout, timeout=timeout)
            except (Exception, asyncio.CancelledError) as error:
                failure = failure or error
        self._region.close()
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose(drain=False)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose(drain=exc_type is None)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Offloader {state}: {self._region!r}, {self._worker!r}, {self._manager!r}>"

    # ---- loading

    async def _load_window(
        self,
        keys: Sequence[OffloadKey],
        start: int,
        blocks: DeviceBlocks,
        ctx: RequestContext,
        secured: asyncio.Future[_Secured | None],
    ) -> None:
        """Promote some keys and copy each part to the device as it arrives; tells when the last has been promoted."""
        transfers: list[Transfer] = []
        try:
            async with self._manager.loading(keys, ctx, streaming=True) as lease:
                try:
                    async for part in lease.parts():
                        device, host = blocks.specs(slice(start, start + len(part.keys)), part.spec)
                        transfers.append(self._worker.submit(next(self._job_ids), (host, device)))
                        start += len(part.keys)
                    if not secured.done():
                        secured.set_result(_Secured(len(lease.keys), lease.by_tier, lease.stopped_by))
                    await self._copied(transfers)
                except BaseException:
                    for transfer in transfers:
                        transfer.stop()
                    await self._copied(transfers)
                    raise
        finally:
            if not secured.done():
                secured.set_result(None)

    async def _copied(self, transfers: Sequence[Transfer]) -> None:
        """Wait until none of the transfers touches the device blocks any more; if cancelled, stop them first."""

        def stop() -> None:
            for transfer in transfers:
                transfer.stop()

        try:
            await outlive(asyncio.ensure_future(self._worker.wait([t.job_id for t in transfers])), stop)
        finally:
            results = [await transfer for transfer in transfers]  # they have ended: this takes their results
        failed = next((result for result in results if not result.success), None)
        if failed is not None:
            raise TransferError(f"a copy to the device failed: {failed.error}", tier="GPU") from failed.error


class _Secured(NamedTuple):
    """What a window of a load has in the primary, all of it held."""

    blocks: int
    by_tier: Mapping[str, int]
    stopped_by: Status | None


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for tasks that work on the caller's memory; if cancelled, stop them, and still wait."""
    for task in tasks:
        await outlive(task, stop=task.cancel)


def _scoped(keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[OffloadKey]:
    keys = checked_keys(keys)
    return [scoped(ctx.namespace, key) for key in keys] if ctx.namespace else keys
