"""Our tiers for vLLM without an engine: the memory, the specification and the jobs that vLLM would pass to them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.testing import FaultyDisk
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat

CHUNK_BYTES = 4096
TIMEOUT = 30
MODULE = {"module_path": "asyncoffload.integrations.vllm"}


def some_keys(n_keys: int, first: int = 0) -> list[OffloadKey]:
    return [make_key((first + i).to_bytes(32, "big")) for i in range(n_keys)]


class HostMemory:
    """vLLM's shared region: rows of signed bytes in a mapping of their own."""

    def __init__(self, n_chunks: int = 64) -> None:
        self.mapping = mmap.mmap(-1, n_chunks * CHUNK_BYTES)
        self.rows: npt.NDArray[np.int8] = np.frombuffer(self.mapping, np.int8).reshape(n_chunks, CHUNK_BYTES)
        self.view = self.rows.data

    def fill(self, chunks: Iterable[int], keys: Iterable[OffloadKey]) -> None:
        """Write what belongs to each key into its chunk."""
        for chunk, key in zip(chunks, keys, strict=True):
            self.rows[chunk] = content_of(key)

    def holds(self, chunks: Iterable[int], keys: Iterable[OffloadKey]) -> bool:
        return all((self.rows[chunk] == content_of(key)).all() for chunk, key in zip(chunks, keys, strict=True))

    def close(self) -> None:
        """Give the memory back, as vLLM does; BufferError when somebody still has it."""
        self.view.release()
        del self.rows, self.view
        self.mapping.close()


def content_of(key: OffloadKey) -> npt.NDArray[np.int8]:
    return np.random.default_rng(list(key)).integers(-128, 128, CHUNK_BYTES, np.int8)


def specification(*, tp_size: int = 1, events: bool = False, **changes: Any) -> Any:
    """What vLLM tells a tier of the engine; ``CHUNK_BYTES`` are those of all ranks together."""
    from vllm.v1.kv_offload.config import (
        OffloadingCacheConfig,
        OffloadingConfig,
        OffloadingGroupConfig,
        OffloadingModelConfig,
        OffloadingParallelConfig,
    )

    values: dict[str, Any] = {
        "groups": (OffloadingGroupConfig(32, ("layer.0", "layer.1"), 0),),
        "worker_kv_bytes_per_block": CHUNK_BYTES // tp_size,
        "enable_kv_cache_events": events,
        "extra_config": {},
        "engine_id": "engine",
        "model": OffloadingModelConfig("a-model", "bfloat16"),
        "cache": OffloadingCacheConfig(32, 1),
        "parallel": OffloadingParallelConfig(0, tp_size, tp_size, 1, 1, 1, 0, 1, None, True),
        "kv_cache_layout": "NHD",
    }
    return SimpleNamespace(
        config=OffloadingConfig(**(values | changes)),
        kv_events_config=SimpleNamespace(enable_kv_cache_events=events, self_describing_kv_events=False),
        replicated_layout=False,
    )


def make_tier(memory: HostMemory, config: dict[str, Any], spec: Any = None) -> Any:
    """A tier, made by vLLM from its entry in the configuration."""
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    spec = specification() if spec is None else spec
    return SecondaryTierFactory.create_secondary_tier(MODULE | config, memory.view, spec)


def block_files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.bin"))


def request(name: str, prompt: Sequence[OffloadKey] = ()) -> Any:
    """A request's context, with its prompt's keys noted as the scheduler does."""
    from vllm.v1.kv_offload.base import ReqContext

    context = ReqContext(name)
    for index, key in enumerate(prompt):
        context.set_offload_key_position(key, 32 * (index + 1))
    return context


def transfer(
    job_id: int, keys: Sequence[OffloadKey], chunks: Iterable[int], context: Any, *, load: bool = False
) -> Any:
    from vllm.v1.kv_offload.tiering.base import TransferJob

    return TransferJob(job_id, list(keys), np.array(list(chunks), np.int32), load, context)


def step(new: Iterable[str] = (), preempted: Iterable[str] = ()) -> Any:
    """What the scheduler says at the end of a step."""
    from vllm.v1.kv_offload.base import ScheduleEndContext

    return ScheduleEndContext(list(new), list(preempted))


def answer(tier: Any, key: OffloadKey, context: Any = None) -> Any:
    """HIT or MISS: asks until the tier knows, with a turn of its loop after each RETRY."""
    from vllm.v1.kv_offload.base import LookupResult

    while (result := tier.lookup(key, context or request("asks"))) is LookupResult.RETRY:
        loop_turn()
    return result


def loop_turn() -> None:
    async def nothing() -> None:
        pass

    LoopThread.shared().run(nothing)


def collected(tier: Any) -> dict[int, Any]:
    """The results of all jobs, by id, after they have ended."""
    tier.drain_jobs()
    results = list(tier.get_finished_jobs())
    assert len({result.job_id for result in results}) == len(results)
    return {result.job_id: result for result in results}


def tier_on(disk: FaultyDisk, memory: HostMemory, root: Path, **config: Any) -> Any:
    """A file-system tier with one thread for each direction, on this disk."""
    from asyncoffload.integrations.vllm.tiers import FileSystemTier

    class TierOnDisk(FileSystemTier):
        def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
            return disk.make_files(block_format, owner, direct)

    return TierOnDisk(specification(), memory.view, "TierOnDisk", root_dir=str(root), io_threads=1, **config)
