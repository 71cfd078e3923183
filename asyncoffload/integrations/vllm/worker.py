"""The worker's side of the whole stack: vLLM's transfers by our handlers, over this rank's part of the slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from asyncoffload.errors import ConfigError, InvalidArgument, TransferError
from asyncoffload.integrations.vllm.checking import LoadChecker
from asyncoffload.integrations.vllm.layout import SlotPlan
from asyncoffload.integrations.vllm.slots import Slots
from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.types import GPULoadStoreSpec, KVGroup, KVLayout, TransferResult, TransferSpec

check_vllm()

from vllm.v1.kv_offload import base as vllm  # noqa: E402

MAX_ATTEMPTS = 3
"""How often a transfer is tried: vLLM cannot be told that one has failed."""


@dataclass(slots=True)
class _Job:
    spec: TransferSpec
    device: GPULoadStoreSpec
    slots: Slots
    is_load: bool
    attempts: int = 0


class AsyncOffloadingWorker(vllm.OffloadingWorker):  # type: ignore[misc]  # vLLM has no types where they are checked
    """Launches vLLM's transfers, and reports each when it has succeeded.

    vLLM has no way to hear of a failure, so a transfer that fails is tried again, and when it goes on failing the
    engine ends with an error that says so, instead of computing with wrong bytes.

    Args:
        worker: what copies; closed with this object.
        factor: device blocks per chunk.
        checker: compares what is loaded; None: nothing does.
        on_check: told after each comparison.
        on_shutdown: called once when nothing touches the slots any more.
    """

    def __init__(
        self,
        worker: SyncOffloadingWorker,
        factor: int,
        *,
        checker: LoadChecker | None = None,
        on_check: Callable[[LoadChecker], None] = lambda checker: None,  # noqa: ARG005
        on_shutdown: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker = worker
        self._factor = factor
        self._checker = checker
        self._on_check = on_check
        self._on_shutdown: Callable[[], None] | None = on_shutdown
        self._running: dict[int, _Job] = {}
        self._finished: list[vllm.TransferResult] = []

    def submit_store(self, job_id: int, src_spec: vllm.GPULoadStoreSpec, dst_spec: Slots) -> bool:
        device = _device_spec(src_spec)
        self._check_whole_chunks(job_id, device, dst_spec)
        if self._checker is not None and dst_spec.keys is not None:
            self._checker.stored(dst_spec.keys, device)
        self._launch(job_id, _Job((device, dst_spec.to_ours()), device, dst_spec, is_load=False))
        return True

    def submit_load(self, job_id: int, src_spec: Slots, dst_spec: vllm.GPULoadStoreSpec) -> bool:
        device = _device_spec(dst_spec)
        self._launch(job_id, _Job((src_spec.to_ours(), device), device, src_spec, is_load=True))
        return True

    def get_finished(self) -> list[vllm.TransferResult]:
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: Iterable[int]) -> None:
        # One that has failed is launched again by its collection, and then still touches the memory.
        waited_for = frozenset(job_ids)
        while wanted := waited_for.intersection(self._running):
            self._worker.wait(wanted)
            self._collect()

    def shutdown(self) -> None:
        on_shutdown, self._on_shutdown = self._on_shutdown, None
        if on_shutdown is None:
            return
        self._worker.wait(list(self._running))
        self._worker.shutdown()
        on_shutdown()

    def _launch(self, job_id: int, job: _Job) -> None:
        job.attempts += 1
        if not self._worker.transfer_async(job_id, job.spec):
            raise TransferError(
                f"transfer {job_id} between device blocks and {job.slots!r} could not be launched, and vLLM cannot do "
                "without it: the reason is in the log, just before this"
            )
        self._running[job_id] = job

    def _collect(self) -> None:
        for result in self._worker.get_finished():
            job = self._running.pop(result.job_id)
            if not result.success:
                self._try_again(result, job)
                continue
            if job.is_load and self._checker is not None and job.slots.keys is not None:
                self._checker.loaded(job.slots.keys, job.device)
                self._on_check(self._checker)
            self._finished.append(vllm.TransferResult(result.job_id, True, result.transfer_size, result.transfer_time))

    def _try_again(self, result: TransferResult, job: _Job) -> None:
        if job.attempts >= MAX_ATTEMPTS:
            raise TransferError(
                f"transfer {result.job_id} between device blocks and {job.slots!r} failed {job.attempts} times, and "
                f"vLLM cannot do without it; the last time: {result.error}"
            ) from result.error
        self._launch(result.job_id, job)

    def _check_whole_chunks(self, job_id: int, device: GPULoadStoreSpec, slots: Slots) -> None:
        """With larger chunks, a gap in a store would shift every block behind it; vLLM does not say where gaps are."""
        sizes = device.group_sizes
        firsts = [index % self._factor for index, size in zip(device.block_indices, sizes, strict=True) if size]
        if any(firsts) or sum(sizes) != len(slots.slots) * self._factor:
            raise InvalidArgument(
                f"transfer {job_id} stores parts of chunks: {sum(sizes)} blocks for {len(slots.slots)} chunks of "
                f"{self._factor}. vLLM does that for models with sliding windows: leave out blocks_per_chunk "
                "and block_size in kv_connector_extra_config"
            )


def kv_views(kv_caches: vllm.CanonicalKVCaches, n_groups: int) -> list[list[torch.Tensor]]:
    """Per group, the part of each layer's tensor that holds data, without the padding behind each page.

    Raises:
        ConfigError: the tensors are not in the groups that vLLM announced.
    """
    if len(kv_caches.group_data_refs) != n_groups:
        raise ConfigError(f"vLLM announced {n_groups} groups of layers and registered {len(kv_caches.group_data_refs)}")
    return [
        [kv_caches.tensors[ref.tensor_idx].tensor.view(torch.int8)[:, : ref.page_size_bytes] for ref in refs]
        for refs in kv_caches.group_data_refs
    ]


def part_layout(plan: SlotPlan, views: Sequence[Sequence[torch.Tensor]], rank: int) -> KVLayout:
    """The layout of one rank's part of a slot.

    Raises:
        ConfigError: its blocks are larger than the part.
    """
    layout = KVLayout(
        model=plan.layout.model,
        dtype=plan.layout.dtype,
        block_size=plan.layout.block_size,
        block_size_factor=plan.layout.block_size_factor,
        groups=tuple(KVGroup(tuple(view[0].nbytes for view in group)) for group in views),
        rank=rank,
    )
    if layout.block_bytes > plan.part_bytes:
        raise ConfigError(
            f"the chunks of rank {rank} have {layout.block_bytes} bytes, but the scheduler reckons with "
            f"{plan.part_bytes}: layers that are not spread evenly over the ranks are not supported"
        )
    return layout


def _device_spec(spec: vllm.GPULoadStoreSpec) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(spec.block_ids, spec.group_sizes, spec.block_indices)
