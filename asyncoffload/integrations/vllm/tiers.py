"""Our tiers behind vLLM's own host memory, each named by ``type`` and ``module_path`` among its secondary tiers."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

from asyncoffload.errors import TierUnavailable
from asyncoffload.integrations.vllm.jobs import JobBook
from asyncoffload.integrations.vllm.layout import layout_of
from asyncoffload.integrations.vllm.metrics import TierMetrics, tier_metrics
from asyncoffload.integrations.vllm.pauses import Pauses, take_a_pause
from asyncoffload.integrations.vllm.tier_options import FileSystemTierOptions, InMemoryTierOptions, TierOptions
from asyncoffload.integrations.vllm.translate import (
    vllm_events,
    vllm_job_result,
)
from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.sync.tier import SyncSecondaryTier
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.tiers.fs.blockfile import BlockFiles, make_block_files
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.types import JobResult, KVLayout, LookupResult

check_vllm()

from vllm.v1.kv_offload import base as vllm_base  # noqa: E402
from vllm.v1.kv_offload.tiering import base as vllm_tiering  # noqa: E402

START_SECONDS = 30.0
"""How long the engine's start waits for a tier to open its storage."""

QUEUED_SHARE = 2
"""The part of vLLM's host memory that stores may wait in, unless the configuration says otherwise: one over this."""

_HIT, _MISS, _RETRY = vllm_base.LookupResult.HIT, vllm_base.LookupResult.MISS, vllm_base.LookupResult.RETRY

_log = logging.getLogger(__name__)


class OffloadingTier(vllm_tiering.SecondaryTierManager):  # type: ignore[misc]  # vLLM is not there for mypy
    """What is common to our tiers in vLLM: any of our tiers, under vLLM's interface.

    All calls are made on the scheduler's thread. None of them waits, except the constructor, :meth:`drain_jobs` and
    :meth:`shutdown`.

    When a request has ended, its loads that have not begun are skipped, unless a request that has yet to be scheduled
    has the same block in its prompt; its stores go on, since they serve others. A load that has waited too long for
    its begin is skipped as well, and its blocks are a miss for a while.

    Args:
        offloading_spec, primary_kv_view, tier_type, backpressure_detector: what vLLM passes to every tier.
        config: every other key of the tier's configuration; a subclass says which there are.

    Raises:
        ConfigError: a key is unknown or malformed, or the storage cannot be used as configured.
        TierUnavailable: the storage cannot be reached.
    """

    def __init__(
        self,
        offloading_spec: vllm_base.OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **config: Any,
    ) -> None:
        options = self.parse(config)
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if options.locality is None else vllm_base.Locality(options.locality)
        layout = layout_of(
            offloading_spec.config,
            order="canonical" if offloading_spec.config.canonical_layout else "tensors",
            revision=options.revision,
            replicated=offloading_spec.replicated_layout,
        )
        self._chunk_bytes = layout.block_bytes
        self._drain_seconds = options.drain_seconds
        self._jobs = JobBook(options.load_seconds)
        self._pauses = Pauses()
        self._drained: list[JobResult] = []
        self._announces = options.enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events
        rows: tuple[int, ...] = primary_kv_view.shape or ()
        chunks = primary_kv_view.cast("B").cast("B", rows)
        self._tier = SyncSecondaryTier(self.make_tier(options, layout, chunks))
        self._metrics = TierMetrics(options.name, self._tier.stats)
        if options.enable_kv_events and not self._announces:
            _log.warning(
                "tier %r: enable_kv_events has no effect, since vLLM's own KV events are disabled: "
                "set kv_events_config.enable_kv_cache_events as well",
                options.name,
            )
        try:
            self._tier.start(START_SECONDS)
        except BaseException:
            with contextlib.suppress(TierUnavailable):
                self._tier.shutdown()
            raise

    @classmethod
    @abstractmethod
    def parse(cls, config: dict[str, Any]) -> TierOptions:
        """The tier's options; ConfigError when they are wrong."""

    @abstractmethod
    def make_tier(self, options: Any, layout: KVLayout, view: memoryview) -> SecondaryTierManager:
        """The tier behind the interface."""

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """The metrics that the tier may report; starts nothing."""
        return tier_metrics()

    # ---- requests

    def on_new_request(self, req_context: vllm_base.ReqContext) -> vllm_base.RequestOffloadingContext:
        self._jobs.arrived(req_context)
        return vllm_base.RequestOffloadingContext()

    def on_schedule_end(self, context: vllm_base.ScheduleEndContext) -> None:
        self._jobs.scheduled(context.new_req_ids, context.preempted_req_ids)
        self._jobs.give_up_late_loads()
        self._pauses.step_ended(context, take_a_pause if self._jobs.loading else None)

    def on_request_finished(self, req_context: vllm_base.ReqContext) -> None:
        self._pauses.request_ended(req_context.req_id)
        self._jobs.ended(req_context.req_id)
        self._tier.forget_request(req_context.req_id)

    # ---- blocks

    def lookup(self, key: Any, req_context: vllm_base.ReqContext) -> vllm_base.LookupResult:  # noqa: ARG002
        if self._jobs.was_given_up(key):
            return _MISS
        answer = self._tier.lookup(key)
        return _HIT if answer is LookupResult.HIT else _MISS if answer is LookupResult.MISS else _RETRY

    def submit_store(self, job_metadata: vllm_tiering.TransferJob) -> None:
        self._tier.submit_store(self._jobs.enter(job_metadata))

    def submit_load(self, job_metadata: vllm_tiering.TransferJob) -> None:
        self._tier.submit_load(self._jobs.enter(job_metadata))

    def touch(self, keys: Collection[Any], req_context: vllm_base.ReqContext) -> None:  # noqa: ARG002
        self._tier.touch(tuple(keys))

    def get_finished_jobs(self) -> Iterable[vllm_tiering.JobResult]:
        results, self._drained = [*self._drained, *self._tier.get_finished()], []
        return [self._leave(result) for result in results]

    def has_pending_work(self) -> bool:
        """Whether a job is running, or has a result that vLLM has not seen."""
        return bool(self._jobs)

    def drain_jobs(self) -> None:
        """Block until every submitted job has ended; the next :meth:`get_finished_jobs` returns all of them."""
        self._tier.drain_jobs()
        while results := self._tier.get_finished():
            self._drained.extend(results)

    # ---- reports

    def take_events(self) -> Iterable[vllm_base.OffloadingEvent]:
        return vllm_events(self._tier.take_events(), self.medium, self.locality) if self._announces else ()

    def get_stats(self) -> Any:
        return self._metrics.take()

    def shutdown(self) -> None:
        """Skip what is to be loaded, give queued stores a moment, then drop them and close the tier.

        Raises:
            TierUnavailable: something still runs, and may touch the primary's memory; vLLM then keeps that memory.
        """
        self._jobs.skip_loads()
        with contextlib.suppress(TierUnavailable):  # what is left is dropped
            self._tier.drain_jobs(self._drain_seconds)
        self._tier.shutdown()

    def _leave(self, result: JobResult) -> vllm_tiering.JobResult:
        entry = self._jobs.leave(result)
        seconds = time.monotonic() - entry.submitted_at
        self._metrics.ended(result, "load" if entry.is_load else "store", seconds)
        return vllm_job_result(result, is_load=entry.is_load, block_bytes=self._chunk_bytes, seconds=seconds)


class FileSystemTier(OffloadingTier):
    """Blocks as files, verified when they are read; see :class:`FileSystemTierOptions` for its keys."""

    medium: ClassVar[Any] = vllm_base.Medium.STORAGE

    @classmethod
    def parse(cls, config: dict[str, Any]) -> FileSystemTierOptions:
        return FileSystemTierOptions(**config)

    def make_tier(self, options: FileSystemTierOptions, layout: KVLayout, view: memoryview) -> SecondaryTierManager:
        threads = auto_io_threads(layout.block_bytes) if options.io_threads == "auto" else options.io_threads
        return FileSystemTierManager(
            layout,
            view,
            options.name,
            options.root_dir,
            threads,
            threads,
            max_queued_bytes=options.max_queued_bytes or view.nbytes // QUEUED_SHARE,
            bound_loads=False,  # vLLM's host memory bounds them: a request that is refused computes its whole prompt
            direct_io=options.direct_io,
            quota=options.quota,
            min_free=options.min_free,
            durability=options.durability,
            io_timeout=options.io_timeout,
            make_files=self.make_files,
        )

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        """What writes and reads the files; a subclass may have others."""
        return make_block_files(block_format, owner, direct)


class InMemoryTier(OffloadingTier):
    """Blocks as bytes in the scheduler's process, without a bound: to try things, and to read first."""

    medium: ClassVar[Any] = vllm_base.Medium.CPU

    @classmethod
    def parse(cls, config: dict[str, Any]) -> InMemoryTierOptions:
        return InMemoryTierOptions(**config)

    def make_tier(self, options: InMemoryTierOptions, layout: KVLayout, view: memoryview) -> SecondaryTierManager:
        return ExampleSecondaryTierManager(layout, view, options.name)
