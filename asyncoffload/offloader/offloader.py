"""What a serving stack holds: look up a prefix, load it into device blocks, store new blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from math import isfinite

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.resource import AsyncResource
from asyncoffload.aio.waiting import outlive
from asyncoffload.config import OffloaderSettings
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey, keys_within
from asyncoffload.managers.base import DEFAULT_EVENT_CAPACITY
from asyncoffload.managers.events import EventSubscription
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.offloader.accounts import Accounts
from asyncoffload.offloader.addressing import DeviceMap
from asyncoffload.offloader.arrival import LayerArrival, under_way
from asyncoffload.offloader.gathering import StatsReader
from asyncoffload.offloader.moving import Mover, closed_error
from asyncoffload.offloader.results import LoadResult, StoreResult
from asyncoffload.offloader.stats import OffloaderStats
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
    Explanation,
    GPULoadStoreSpec,
    Int32s,
    KVLayout,
    RequestContext,
)
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.caches import LayerCache, tensors_of
from asyncoffload.workers.devices import pinner_for
from asyncoffload.workers.worker import OffloadingWorker

TierFactory = Callable[[KVLayout, memoryview], SecondaryTierManager]
HandlerFactory = Callable[[Sequence[Sequence[LayerCache]], HostRegion, KVLayout], OffloadingHandler]


class Offloader(AsyncResource):
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
        clock: seconds; the clock of the deadlines.

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
        clock: Callable[[], float] = time.monotonic,
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
                write_policy=settings.write_policy,
                dirty_victims=settings.dirty_victims,
                journal_blocks=settings.journal_blocks,
                group_bytes=[self._layout.group_bytes(group) for group in range(len(self._layout.groups))],
                clock=clock,
            )
            copier = (handler or partial(handler_for, settings))(groups, self._region, self._layout)
            self._worker = OffloadingWorker()
            self._worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, copier)
            self._worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, copier)
            undo.pop_all()
        n_blocks = [len(tensors[0]) for tensors in tensors_of(groups)]
        self._device = DeviceMap(n_blocks, self._layout.block_size_factor)
        self._accounts = Accounts([CPULoadStoreSpec.medium(), *(tier.tier_type for tier in self._tiers)])
        self._mover = Mover(
            self._manager,
            self._worker,
            self._accounts.copies,
            n_slots=self._region.n_slots,
            slice_blocks=settings.slice_blocks,
        )
        self._stats = StatsReader(self._region, self._manager, self._tiers, self._worker, self._accounts)
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
        keys = keys_within(ctx.namespace, keys)
        self._device.groups_of(keys)
        with self._accounts.verbs["lookup"].call():
            found = await self._manager.lookup(keys, ctx)
        self._accounts.blocks.looked_up(len(keys), found)
        return found

    async def load(
        self,
        keys: Sequence[OffloadKey],
        device_blocks: Sequence[int] | Int32s,
        ctx: RequestContext = ANONYMOUS,
        *,
        arrival: LayerArrival | None = None,
        prefill_rate: float | None = None,
    ) -> LoadResult:
        """Bring the longest prefix that can be had into the device blocks.

        Blocks are copied to the device as they arrive from their tiers, while those behind them are still on the way.

        Args:
            arrival: a new one makes the copies layer by layer, and tells of each layer. A request of more blocks than
                half of host memory comes in stretches, and its layers with the last of them.
            prefill_rate: tokens per second that the request computes. Then no more is loaded than is quicker to load,
                judging by how the tiers have delivered of late and by what they have to deliver before; a tier that
                has delivered nothing yet is taken to be quick.

        Raises:
            InvalidArgument: keys or device blocks are malformed, the arrival is not new, or the rate is not above 0, or
                too near to it; nothing was moved.
            TransferError: a copy to the device failed; the device blocks are undefined.
            ClosedError: the offloader was closed; the device blocks are undefined.

        Cancellation: returns, by raising, only when nothing touches the device blocks any more; their content is
        undefined then.
        """
        self._check_open()
        wanted = keys = keys_within(ctx.namespace, keys)
        blocks = self._device.blocks_of(keys, device_blocks, distinct=True)
        computing = None if prefill_rate is None else self._seconds_per_block(prefill_rate)
        estimate = None
        with under_way(arrival), self._accounts.verbs["load"].call():
            await self._manager.touch(keys, ctx)
            if computing is not None:
                estimate = await self._manager.weigh(keys, ctx, computing)
                # Nothing is known of what is behind the first block that was not found, so no more than that is asked
                # for: it says why the prefix ends, or was on its way into host memory.
                keys = keys[: estimate.blocks + (estimate.blocks == estimate.found)]
            result = replace(await self._mover.load(keys, blocks, ctx, arrival), estimate=estimate)
        self._accounts.blocks.loaded(len(wanted), result)
        return result

    async def prefetch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> LoadResult:
        """Bring the longest prefix that can be had from the slower tiers into host memory, for a load that will come.

        It is patient: loads that somebody waits for overtake it, and one that wants the same block makes it hurry. It
        brings no more than fills half of host memory, and holds none of it when it returns.

        Returns:
            The prefix that was in host memory at some moment of the call; ``"CPU"`` counts what was there before, and
            ``stopped_by`` is None also where half of host memory was the end of it.

        Raises:
            InvalidArgument: keys are malformed.
            ClosedError: the offloader was closed.

        Cancellation: leaves at once. What nobody else waits for is brought no further.
        """
        self._check_open()
        keys = keys_within(ctx.namespace, keys)
        self._device.groups_of(keys)
        with self._accounts.verbs["prefetch"].call():
            return await self._mover.prefetch(keys, ctx)

    async def store(
        self, keys: Sequence[OffloadKey], device_blocks: Sequence[int] | Int32s, ctx: RequestContext = ANONYMOUS
    ) -> StoreResult:
        """Copy those of the blocks that are absent into host memory, and from there, later, to the slower tiers.

        All keys of a request may be passed, also those that were loaded: they count as used together. Returns when
        the device blocks may be reused. Waits for room while others hold it, until the deadline; calls of a tier that
        hang are no such others: what cannot have room without their slots is shed.

        Raises:
            InvalidArgument: keys or device blocks are malformed; nothing was moved.
            TransferError: a copy from the device failed; its blocks were not stored.
            ClosedError: the offloader was closed.

        Cancellation: returns, by raising, only when nothing reads the device blocks any more. Slices that were
        complete by then stay stored.
        """
        self._check_open()
        keys = keys_within(ctx.namespace, keys)
        blocks = self._device.blocks_of(keys, device_blocks, distinct=False)
        with self._accounts.verbs["store"].call():
            result = await self._mover.store(keys, blocks, ctx)
        self._accounts.blocks.stored(result)
        return result

    async def explain(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> Explanation:
        """Where a block is, was, when and why it left; see :meth:`TieringOffloadingManager.explain`."""
        self._check_open()
        [key] = keys_within(ctx.namespace, [key])
        return await self._manager.explain(key, ctx)

    # ---- the whole

    async def settle(self) -> None:
        """Wait until every block that is on its way to a slower tier now has arrived there or was shed.

        What is stored meanwhile is not waited for. Under ``write_policy = "demote"`` most blocks are on no way:
        :meth:`flush` brings all of them.

        Cancellation: leaves at once.
        """
        await self._manager.settle()

    async def flush(self) -> None:
        """Copy every block of host memory to the slower tiers that have none of it, and wait until that has ended.

        What is stored meanwhile is not waited for. Blocks that a tier does not take are counted as shed or failed; one
        that sheds only a part, as where it has to make room first, is given that again, as long as it takes some.

        Raises:
            ClosedError: the offloader was closed.

        Cancellation: leaves at once, and the copying goes on.
        """
        await self._manager.flush()

    def events(self, capacity: int = DEFAULT_EVENT_CAPACITY) -> EventSubscription:
        """Subscribe to blocks that appear in a tier or leave it, from now on: an async iterator, bounded."""
        return self._manager.events(capacity)

    def stats(self) -> OffloaderStats:
        """Where the stack stands, in numbers. Any thread."""
        return self._stats.read()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work, let cascades finish for up to ``drain_timeout`` seconds, give everything back. Idempotent.

        Blocks that are on no way to a tier are lost with host memory; :meth:`flush` before brings them there.

        Raises:
            TierUnavailable: something still runs ``timeout`` seconds later. The memory it may touch stays mapped.

        Cancellation: what is queued is dropped, what runs is still awaited, then the cancellation is raised.
        """
        self._closed = True
        failure: BaseException | None = None
        closings: list[Callable[..., Awaitable[None]]] = [self._mover.aclose, self._manager.aclose]
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

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Offloader {state}: {self._region!r}, {self._worker!r}, {self._manager!r}>"

    # ---- inside

    def _seconds_per_block(self, prefill_rate: float) -> float:
        with suppress(TypeError, ValueError, OverflowError):
            if prefill_rate > 0 and isfinite(seconds := self._layout.tokens_per_block / prefill_rate):
                return seconds
        raise InvalidArgument(f"prefill_rate is {prefill_rate!r}: pass tokens per second above 0, or leave it out")

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
            raise closed_error()
