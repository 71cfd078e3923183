"""The whole stack for vLLM: host memory shared by scheduler and workers, our manager, our copies, our tiers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.config import OffloaderSettings
from asyncoffload.errors import ConfigError
from asyncoffload.integrations.vllm.checking import LoadChecker
from asyncoffload.integrations.vllm.layout import SlotPlan
from asyncoffload.integrations.vllm.manager import AsyncOffloadingManager, places_of
from asyncoffload.integrations.vllm.options import StackOptions
from asyncoffload.integrations.vllm.stack_metrics import StackMetrics, stack_metrics
from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.integrations.vllm.worker import AsyncOffloadingWorker, kv_views, part_layout
from asyncoffload.memory.region import Pinner
from asyncoffload.memory.shared import SharedRegion
from asyncoffload.offloader.wiring import policy_for, tiers_for
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVLayout
from asyncoffload.workers.device_host import DeviceHostHandler
from asyncoffload.workers.devices import device_for, pinner_for

check_vllm()

from vllm.config.vllm import get_current_vllm_config_or_none  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec  # noqa: E402
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingSpec  # noqa: E402
from vllm.v1.kv_offload.config import OffloadingConfig  # noqa: E402

MEETING_SECONDS = 60.0
"""How long the scheduler waits for its workers to join the shared memory; vLLM starts the workers first."""

CLOSING_SECONDS = 10.0
"""How long each tier may take to end what is running."""

_SCHEDULER = "scheduler"

_log = logging.getLogger(__name__)


class AsyncOffloadingSpec(OffloadingSpec):  # type: ignore[misc]  # vLLM has no types where they are checked
    """Named in ``kv_connector_extra_config`` as ``spec_name``; its keys are those of :class:`StackOptions`.

    vLLM makes one in the scheduler and one in every worker. They meet in shared memory under the engine's id.

    Attributes:
        clock: seconds; what ``load_seconds`` are measured with. A subclass may have another one.

    Raises:
        ConfigError: a key is unknown or malformed, or the engine is configured as this stack does not support it.
    """

    clock = staticmethod(time.monotonic)

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        """The metrics that the scheduler's side may report; starts nothing."""
        StackOptions.parse(extra_config)
        return stack_metrics()

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        self._options = StackOptions.parse(config.extra_config)
        if config.cache.blocks_per_chunk > 1 and len(config.groups) > 1:
            raise ConfigError(
                f"chunks of {config.cache.blocks_per_chunk} blocks are not supported for a model with "
                f"{len(config.groups)} groups of layers: leave out blocks_per_chunk and block_size"
            )
        self._plan = SlotPlan.of(config, self._options.cpu_bytes_to_use, revision=self._options.revision)
        self._manager: AsyncOffloadingManager | None = None
        self._worker: AsyncOffloadingWorker | None = None
        self._caches_lie_at: list[int] = []

    def get_manager(self) -> AsyncOffloadingManager:
        if self._manager is None:
            with ExitStack() as undo:
                self._manager = self._make_manager(undo)
                undo.pop_all()
        return self._manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> AsyncOffloadingWorker:
        where = [entry.tensor.data_ptr() for entry in kv_caches.tensors]
        if self._worker is None:
            with ExitStack() as undo:
                self._worker = self._make_worker(kv_caches, undo)
                undo.pop_all()
            self._caches_lie_at = where
        elif where != self._caches_lie_at:
            raise ConfigError("the KV cache was registered again, at another place: moving it is not supported")
        return self._worker

    def make_tiers(self, settings: OffloaderSettings, layout: KVLayout, view: memoryview) -> list[SecondaryTierManager]:
        """The tiers behind host memory, over its slots, not started; a subclass may make others of the same names.

        Raises:
            ConfigError: what a tier says to its settings.
        """
        return tiers_for(settings, layout, view)

    def _make_manager(self, undo: ExitStack) -> AsyncOffloadingManager:
        options, plan = self._options, self._plan
        shared = self._join(_SCHEDULER)
        undo.callback(shared.close)
        shared.wait_for_all(MEETING_SECONDS)
        stack = options.stack()
        tiers = self.make_tiers(stack, plan.layout, shared.region.view)
        loop = LoopThread.shared()
        close = partial(_close, loop, tiers, shared)
        undo.pop_all()
        undo.callback(close)
        for tier in tiers:
            loop.run(tier.start)
        blocks = SyncOffloadingManager(
            shared.region,
            tiers,
            policy=policy_for(stack),
            store_threshold=stack.store_threshold,
            block_size=plan.layout.tokens_per_block,
            promotion_bytes=stack.promotion_bytes,
            cascade_blocks=stack.cascade_blocks,
            write_policy=stack.write_policy,
            dirty_victims=stack.dirty_victims,
            journal_blocks=stack.journal_blocks,
            clock=self.clock,
        )
        _log.info(
            "%d slots of %d bytes for %d ranks, shared as %s; tiers: %s",
            plan.n_slots,
            plan.slot_bytes,
            self.config.parallel.world_size,
            self.config.engine_id,
            ", ".join(tier.tier_type for tier in tiers) or "none",
        )
        return AsyncOffloadingManager(
            blocks,
            places_of({tier.name: tier.type for tier in options.secondary_tiers}),
            announce=self.config.enable_kv_cache_events,
            keys_for_workers=options.verify_loads,
            steps_in_flight=self.config.parallel.pp_size + 1,
            load_seconds=options.load_seconds,
            drain_seconds=options.drain_seconds,
            flush_at_shutdown=options.flush_at_shutdown,
            report=StackMetrics(shared, self._ranks()),
            on_shutdown=close,
            clock=self.clock,
        )

    def _make_worker(self, kv_caches: CanonicalKVCaches, undo: ExitStack) -> AsyncOffloadingWorker:
        options, plan, rank = self._options, self._plan, self.config.parallel.rank
        self._require_whole_chunks()
        views = kv_views(kv_caches, len(self.config.groups))
        layout = part_layout(plan, views, rank)
        shared = self._join(self._ranks()[rank], pinner_for(views))
        undo.callback(shared.close)
        device = device_for(views, shared.region, copy_threads=options.copy_threads)
        undo.callback(device.close)
        handler = DeviceHostHandler(views, shared.region, layout, slot_offset=rank * plan.part_bytes, device=device)
        worker = SyncOffloadingWorker()
        undo.callback(worker.shutdown)
        worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
        worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, handler)
        return AsyncOffloadingWorker(
            worker,
            plan.layout.block_size_factor,
            checker=LoadChecker(views, plan.layout.block_size_factor) if options.verify_loads else None,
            on_check=partial(_leave_note, shared),
            on_shutdown=shared.close,
        )

    def _require_whole_chunks(self) -> None:
        """Layers that look back over a window, or keep one state, leave gaps in larger chunks."""
        config = get_current_vllm_config_or_none()
        factor = self.config.cache.blocks_per_chunk
        if factor == 1 or config is None:
            return
        layers = config.compilation_config.static_forward_context
        for name in (name for group in self.config.groups for name in group.layer_names if name in layers):
            spec = layers[name].get_kv_cache_spec(config)
            if not isinstance(spec, FullAttentionSpec):
                raise ConfigError(
                    f"chunks of {factor} blocks are not supported for layers like {name}, whose cache is a "
                    f"{type(spec).__name__}: leave out blocks_per_chunk and block_size"
                )

    def _ranks(self) -> list[str]:
        return [f"rank {rank}" for rank in range(self.config.parallel.world_size)]

    def _join(self, member: str, pinner: Pinner | None = None) -> SharedRegion:
        plan, members = self._plan, (_SCHEDULER, *self._ranks())
        return SharedRegion(self.config.engine_id, member, members, plan.n_slots, plan.slot_bytes, pinner=pinner)


def _close(loop: LoopThread, tiers: Sequence[SecondaryTierManager], shared: SharedRegion) -> None:
    """Close the tiers, also when one of them fails, and leave the shared memory."""
    with ExitStack() as closing:
        closing.callback(shared.close)
        for tier in tiers:
            closing.callback(loop.run, partial(tier.aclose, drain=False, timeout=CLOSING_SECONDS))


def _leave_note(shared: SharedRegion, checker: LoadChecker) -> None:
    shared.notes[1:3] = checker.compared, checker.unknown
