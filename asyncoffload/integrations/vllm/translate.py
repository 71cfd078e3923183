"""From vLLM's vocabulary to ours, and back. Keys are the same in both: a block hash, then four bytes of group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.types import DONE, JobResult, OffloadingEvent, Priority, TransferJob

check_vllm()

from vllm.v1.kv_offload import base as vllm_base  # noqa: E402
from vllm.v1.kv_offload.tiering import base as vllm_tiering  # noqa: E402


def transfer_job(job: vllm_tiering.TransferJob) -> TransferJob:
    """A job of vLLM's. Requests wait for promotions; nobody waits for stores."""
    return TransferJob(
        list(job.keys),
        job.chunk_ids.tolist(),
        priority=Priority.DEMAND if job.is_promotion else Priority.CASCADE,
        job_id=job.job_id,
    )


def vllm_job_result(result: JobResult, *, is_load: bool, block_bytes: int, seconds: float) -> vllm_tiering.JobResult:
    """How a job ended. A load that failed in part says which keys arrived."""
    n_done = result.outcomes.count(DONE)
    success = n_done == len(result.keys)
    return vllm_tiering.JobResult(
        job_id=result.job_id,
        success=success,
        successful_keys=tuple(result.successful_keys) if is_load and not success else None,
        transfer_time=seconds,
        transfer_bytes=n_done * block_bytes,
    )


def vllm_events(events: Iterable[OffloadingEvent], medium: Any, locality: Any) -> list[vllm_base.OffloadingEvent]:
    """Blocks that appeared in a tier or left it; the tier's name says whose they are."""
    return [
        vllm_base.OffloadingEvent(
            keys=list(event.keys), medium=medium, removed=event.removed, locality=locality, ownership=event.medium
        )
        for event in events
    ]


def is_wanted(request: vllm_base.ReqContext, key: bytes) -> bool:
    """Whether a block is part of a request's prompt."""
    return request.get_offload_key_position(key) is not None
