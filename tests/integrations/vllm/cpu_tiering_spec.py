"""vLLM's own tiering on a CPU: everything is vLLM's, but for the worker, which vLLM has for accelerators only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CopyingWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies between the device's blocks and the shared region at once, on the engine's thread.

    Args:
        zero_loads: leave zeros where a loaded block should be, for the test that shows that the other tests see it.
    """

    def __init__(
        self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion, blocks_per_chunk: int, *, zero_loads: bool
    ) -> None:
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._zero_loads = zero_loads
        self._groups = kv_caches.group_data_refs
        self._device = [entry.tensor for entry in kv_caches.tensors]
        self._host = [
            region.create_next_worker_view(entry.page_size_bytes * blocks_per_chunk).unflatten(
                1, (blocks_per_chunk, entry.page_size_bytes)
            )
            for entry in kv_caches.tensors
        ]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec, dst_spec.chunk_ids, load=False)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, dst_spec, src_spec.chunk_ids, load=True)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        pass

    def shutdown(self) -> None:
        self._host.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, device: GPULoadStoreSpec, chunk_ids: Any, *, load: bool) -> bool:
        blocks_done = chunks_done = nbytes = 0
        for group, n_blocks in enumerate(device.group_sizes):
            skipped = device.block_indices[group] % self._blocks_per_chunk if n_blocks else 0
            n_chunks = -(-(skipped + n_blocks) // self._blocks_per_chunk)
            blocks = torch.from_numpy(device.block_ids[blocks_done : blocks_done + n_blocks].astype(np.int64))
            chunks = np.repeat(chunk_ids[chunks_done : chunks_done + n_chunks], self._blocks_per_chunk)
            rows = torch.from_numpy(chunks[skipped : skipped + n_blocks].astype(np.int64))
            parts = (torch.arange(n_blocks) + skipped) % self._blocks_per_chunk
            blocks_done += n_blocks
            chunks_done += n_chunks
            for reference in self._groups[group]:
                on_device, on_host = self._device[reference.tensor_idx], self._host[reference.tensor_idx]
                if load:
                    loaded = on_host[rows, parts]
                    on_device[blocks] = torch.zeros_like(loaded) if self._zero_loads else loaded
                else:
                    on_host[rows, parts] = on_device[blocks]
                nbytes += n_blocks * reference.page_size_bytes
        self._finished.append(TransferResult(job_id, True, nbytes, 0.0))
        return True


class CPUTieringSpec(TieringOffloadingSpec):  # type: ignore[misc]
    """vLLM's manager, region and tiers; the key ``zero_loads`` of its configuration spoils every load."""

    _own_worker: CopyingWorker | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._own_worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._own_worker = CopyingWorker(
                kv_caches, region, self.blocks_per_chunk, zero_loads=bool(self.extra_config.get("zero_loads"))
            )
        return self._own_worker
