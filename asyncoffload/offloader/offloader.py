"""What a serving stack holds: look up a prefix, load it into device blocks, store new blocks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.waiting import outlive
from asyncoffload.config import OffloaderSettings
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.errors import CapacityError, ClosedError, TransferError
from asyncoffload.keys import OffloadKey, checked_keys, scoped
from asyncoffload.managers.base import DEFAULT_EVENT_CAPACITY
from asyncoffload.managers.events import EventSubscription
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.offloader.addressing import DeviceBlocks, DeviceMap
from asyncoffload.offloader.arrival import LayerArrival, under_way
from asyncoffload.offloader.copies import Copies
from asyncoffload.offloader.pipeline import Stretch, pipeline
from asyncoffload.offloader.results import LoadResult, OffloaderStats, StoreResult
from asyncoffload.offloader.wiring import (
    KVCaches,
    grouped,
    handler_for,
    layout_of,
    policy_for,
    region_for,
    tiers_for,
)
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
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.caches import LayerCache, tensors_of
from asyncoffload.workers.devices import pinner_for
from asyncoffload.workers.worker import OffloadingWorker

WINDOW_SLICES = 4

TierFactory = Callable[[KVLayout, memoryview], SecondaryTierManager]
HandlerFactory = Callable[[Sequence[Sequence[LayerCache]], HostRegion, KVLayout], OffloadingHandler]


class Offloader:
    """KV-cache blocks on their way between device blocks, host memory and slower tiers.

    Keys name offloaded blocks in request order; ``device_blocks`` are the ``block_size_factor`` device blocks of each
    key, in the same order. A request may be larger than host memory: it is moved in slices.

    Cancellation, also by ``asyncio.timeout`` or an anyio scope, may strike any call at any moment. Device blocks
    belong to the caller: ``load`` and ``store`` return or raise only when nothing touches them any more. A deadline in
    the context ends the waiting instead: ``load`` then returns the prefix that made it, ``store`` sheds the rest.

    For KV caches on an accelerator, making one blocks while host memory is pinned, up to a second per GB: make it
    before the event loop has others to serve. Close it: pinned memory stays pinned until then.

    Args:
        settings: or a mapping of them.
        kv_caches: the layer tensors, shape ``(num_blocks, ...)``, or tuples of them, as K and V apart; or one list of
            layers per KV-cache group.
        policy: an eviction policy of one's own, instead of the one that the settings name.
        tiers: tiers of one's own, behind those of the settings: called with the layout and the primary's slots.
        handler: makes what copies between device blocks and slots, from the tensors by group, the region of slots and
            the layout; by default what suits the device that the tensors lie on.

    Raises:
        ConfigError: settings are wrong, or do not fit the tensors.
        InvalidArgument: the tensors cannot be copied block by block.
        CapacityError: the host memory cannot be had.
    """

    def __init__(
        self,
        settings: OffloaderSettings | Mapping[str, object],
        *,
        kv_caches: KVCaches,
        policy: EvictionPolicy | None = None,
        tiers: Sequence[TierFactory] = (),
        handler: HandlerFactory | None = None,
    ) -> None:
        if not isinstance(settings, OffloaderSettings):
            settings = OffloaderSettings.parse(settings)
        policy = policy_for(settings) if policy is None else policy
        groups = grouped(kv_caches, settings.block_dim)
        self._layout = layout_of(settings, groups)
        self._region = region_for(settings, self._layout, pinner_for(groups))
        with ExitStack() as undo:
            undo.callback(self._region.close)
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
            copier = (handler or partial(handler_for, settings))(groups, self._region, self._layout)
            self._worker = OffloadingWorker()
            self._worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, copier)
            self._worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, copier)
            undo.pop_all()
        n_blocks = [len(tensors[0]) for tensors in tensors_of(groups)]
        self._device = DeviceMap(n_blocks, self._layout.block_size_factor)
        self._slice = min(settings.slice_blocks, self._region.n_slots)
        self._window = max(1, min(WINDOW_SLICES * self._slice, self._region.n_slots // 2))
        self._writing = 0
        self._written = asyncio.Event()
        self._closed = False

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block mean, as read from settings and tensors."""
        return self._layout

    @property
    def tiers(self) -> Sequence[SecondaryTierManager]:
        """The secondary tiers, in the order in which they are asked."""
        return tuple(self._tiers)

    async def start(self) -> None:
        """Start the tiers, so that what is wrong with them shows now; entering the ``async with`` block does it.

        Raises:
            ConfigError, TierUnavailable: what a tier found.
            ClosedError: the offloader was closed.
        """
        self._check_open()
        for tier in self._tiers:
            await tier.start()

    def ready(self, keys: Sequence[OffloadKey]) -> int:
        """How many of the leading blocks are in host memory; keys with their namespace. Plain, advice, any thread."""
        return self._manager.ready(keys)

    # ---- the three verbs

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """How many of the leading blocks some tier holds. Advice: it moves nothing and may be outdated at once.

        Raises:
            InvalidArgument: keys are malformed.
            ClosedError: the offloader was closed.

        Cancellation: leaves at once.
        """
        self._check_open()
        keys = keys_within(keys, ctx)
        self._device.groups_of(keys)
        return await self._manager.lookup(keys, ctx)

    async def load(
        self,
        keys: Sequence[OffloadKey],
        device_blocks: Sequence[int] | Int32s,
        ctx: RequestContext = ANONYMOUS,
        *,
        arrival: LayerArrival | None = None,
    ) -> LoadResult:
        """Bring the longest prefix that can be had into the device blocks.

        Blocks are copied to the device as they arrive from their tiers, while those behind them are still on the way.

        Args:
            arrival: a new one makes the copies layer by layer, and tells of each layer. A request of more blocks than
                half of host memory comes in stretches, and its layers with the last of them.

        Raises:
            InvalidArgument: keys or device blocks are malformed, or the arrival is not new; nothing was moved.
            TransferError: a copy to the device failed; the device blocks are undefined.
            ClosedError: the offloader was closed; the device blocks are undefined.

        Cancellation: returns, by raising, only when nothing touches the device blocks any more; their content is
        undefined then.
        """
        self._check_open()
        keys = keys_within(keys, ctx)
        blocks = self._device.blocks_of(keys, device_blocks, distinct=True)
        with under_way(arrival):
            await self._manager.touch(keys, ctx)
            return await self._load_in_stretches(keys, blocks, ctx, arrival)

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
        self._check_open()
        keys = keys_within(keys, ctx)
        blocks = self._device.blocks_of(keys, device_blocks, distinct=False)
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
        closings: list[Callable[..., Awaitable[None]]] = [self._close_copies, self._manager.aclose]
        for close in [*closings, *(tier.aclose for tier in self._tiers)]:
            try:
                await close(drain=drain and failure is None, drain_timeout=drain_timeout, timeout=timeout)
            except asyncio.CancelledError as error:
                failure = error
            except Exception as error:
                failure = failure or error
        await self._close_region()
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

    # ---- inside

    async def _load_in_stretches(
        self, keys: Sequence[OffloadKey], blocks: DeviceBlocks, ctx: RequestContext, arrival: LayerArrival | None
    ) -> LoadResult:
        window = self._window if arrival is None else max(1, self._region.n_slots // 2)
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

    async def _load_stretch(
        self, blocks: DeviceBlocks, ctx: RequestContext, arrival: LayerArrival | None, stretch: Stretch
    ) -> None:
        """Promote the keys of a stretch, and copy each part to the device as it arrives."""
        end = stretch.start
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
        try:
            async with self._manager.storing(stretch.keys, ctx, wait=True) as lease:
                stretch.secure(len(lease.keys))
                if lease.keys:
                    device, host = blocks.specs([positions[key] for key in lease.keys], lease.spec)
                    with self._counted_as_writing():
                        async with self._copies() as copies:
                            copies.submit(device, host)
        except CapacityError:
            stretch.secure(0, stopped_by=Status.SHED)

    @contextmanager
    def _counted_as_writing(self) -> Iterator[None]:
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._written.set()

    @asynccontextmanager
    async def _copies(self) -> AsyncIterator[Copies]:
        """Copies under a lease; those that end because the offloader is closed say so."""
        try:
            async with Copies(self._worker) as copies:
                yield copies
        except TransferError as error:
            if self._closed:
                raise self._closed_error() from error
            raise

    async def _close_copies(self, *, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        """End the copies, and wait until what they stored counts: the manager may still have to cascade it."""
        await self._worker.aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)
        while self._writing:
            self._written.clear()
            await self._written.wait()

    async def _close_region(self) -> None:
        if not self._region.pinned:
            self._region.close()
            return
        # Unpinning takes the driver a tenth of a second per GB, for which the loop has no time.
        threads = IOThreads(1, name="asyncoffload-unpin")
        await outlive(asyncio.wrap_future(threads.submit(self._region.close)))
        threads.shutdown(wait=False)

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError("the offloader was closed and takes no new work: open another one")


def keys_within(keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[OffloadKey]:
    """The keys, checked, with the namespace of the request folded in.

    Raises:
        InvalidArgument: keys are malformed.
    """
    keys = checked_keys(keys)
    return [scoped(ctx.namespace, key) for key in keys] if ctx.namespace else keys
