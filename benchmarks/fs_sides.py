"""The two tiers that ``fs_tier.py`` measures, behind one face: ours, and vLLM's where it is installed."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import uvloop
from raw_io import remove_tree

from asyncoffload.core.layout import block_path
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.types import JobResult, KVGroup, KVLayout, TransferJob

T = TypeVar("T")
Job = tuple[Sequence[OffloadKey], Sequence[int]]

PEER_POLL_SECONDS = 0.0002
"""How often vLLM's tier is asked what has finished: far more often than an engine's step would."""


class Memory:
    """Slots full of random bytes."""

    def __init__(self, n_slots: int, slot_bytes: int) -> None:
        self.n_slots, self.slot_bytes = n_slots, slot_bytes
        self._map = mmap.mmap(-1, n_slots * slot_bytes)
        self.flat = memoryview(self._map)
        np.frombuffer(self._map, np.uint64)[:] = (
            np.random.default_rng(0)
            .integers(0, 2**63, 1 << 16)
            .repeat(len(self._map) // 8 // (1 << 16) + 1)[: len(self._map) // 8]
        )
        self.view = self.flat.cast("B", (n_slots, slot_bytes))

    def slots(self, indices: Sequence[int]) -> list[memoryview]:
        """The bytes of some slots."""
        return [self.flat[i * self.slot_bytes : (i + 1) * self.slot_bytes] for i in indices]


def new_keys(count: int) -> list[OffloadKey]:
    """Keys that nobody has seen."""
    return [make_key(os.urandom(32)) for _ in range(count)]


class Side(ABC):
    """A tier under test; times are seconds from submission until the results are visible."""

    name: str

    @abstractmethod
    def store(self, jobs: Sequence[Job]) -> float:
        """Store jobs that are submitted at once."""

    @abstractmethod
    def load(self, jobs: Sequence[Job]) -> float:
        """Load jobs that are submitted at once."""

    @abstractmethod
    def load_beside_stores(self, stores: Sequence[Job], depth: int, loads: Sequence[Job], gap: float) -> list[float]:
        """Seconds of each load, arriving every ``gap`` seconds, while ``depth`` stores are always under way."""

    @abstractmethod
    def forget(self) -> None:
        """Remove all blocks."""


class Ours(Side):
    """asyncoffload on uvloop, with the thread count that ``Offloader`` chooses unless one is given."""

    name = "asyncoffload"

    def __init__(self, memory: Memory, root: str, threads: int | None = None) -> None:
        self.memory, self.root = memory, root
        self.layout = KVLayout("bench", "bfloat16", 16, (KVGroup((memory.slot_bytes,)),))
        self.threads = threads or auto_io_threads(memory.slot_bytes)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._open()

    def store(self, jobs: Sequence[Job]) -> float:
        return self._runner.run(self.move_all(self.tier.store, jobs))

    def load(self, jobs: Sequence[Job]) -> float:
        return self._runner.run(self.move_all(self.tier.load, jobs))

    def run(self, call: Awaitable[T]) -> T:
        """Run something on the tier's loop."""

        async def it() -> T:
            return await call

        return self._runner.run(it())

    def load_beside_stores(self, stores: Sequence[Job], depth: int, loads: Sequence[Job], gap: float) -> list[float]:
        async def storing(jobs: itertools.chain[Job]) -> None:
            for keys, slots in jobs:
                (await self.tier.store(TransferJob(keys, slots))).raise_for_failures()

        async def loading(job: Job) -> float:
            began = time.perf_counter()
            (await self.tier.load(TransferJob(*job))).raise_for_failures()
            return time.perf_counter() - began

        async def both() -> list[float]:
            backlog = itertools.chain(stores)
            writers = [asyncio.create_task(storing(backlog)) for _ in range(depth)]
            readers = []
            for job in loads:
                await asyncio.sleep(gap)
                if any(writer.done() for writer in writers):
                    break
                readers.append(asyncio.create_task(loading(job)))
            seconds = await asyncio.gather(*readers)
            await asyncio.gather(*writers)
            return seconds

        return self._runner.run(both())

    def forget(self) -> None:
        self.run(self.tier.aclose())
        remove_tree(self.root)
        self._open()

    def close(self) -> None:
        self.run(self.tier.aclose())
        self._runner.close()

    def paths(self, directory: str, keys: Sequence[OffloadKey]) -> list[str]:
        """Where bare threads put the same files."""
        return [block_path(directory, key) for key in keys]

    def _open(self) -> None:
        n = self.threads
        self.tier = FileSystemTierManager(self.layout, self.memory.view, "fs", self.root, n, n)
        self.run(self.tier.start())

    async def move_all(self, verb: Callable[[TransferJob], Awaitable[JobResult]], jobs: Sequence[Job]) -> float:
        began = time.perf_counter()
        results = await asyncio.gather(*(verb(TransferJob(*job)) for job in jobs))
        seconds = time.perf_counter() - began
        for result in results:
            result.raise_for_failures()
        return seconds


class Vllm(Side):
    """vLLM's file system tier, with its defaults."""

    name = "vllm"

    def __init__(self, memory: Memory, root: str) -> None:
        from types import SimpleNamespace

        from vllm.v1.kv_offload import config
        from vllm.v1.kv_offload.base import ReqContext
        from vllm.v1.kv_offload.tiering.base import TransferJob as VllmJob
        from vllm.v1.kv_offload.tiering.fs import io
        from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager as VllmTier

        self.c_extension = io._HAS_FSIO_C
        self._make_job, self._make_context = VllmJob, ReqContext
        self.root = root
        settings = config.OffloadingConfig(
            groups=(config.OffloadingGroupConfig(16, ("layer",), 0),),
            worker_kv_bytes_per_block=memory.slot_bytes,
            enable_kv_cache_events=False,
            extra_config={},
            engine_id="bench",
            model=config.OffloadingModelConfig("bench", "bfloat16"),
            cache=config.OffloadingCacheConfig(16, 1),
            parallel=config.OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
        )
        spec = SimpleNamespace(config=settings, blocks_per_chunk=1)
        self._make_tier: Callable[[], Any] = lambda: VllmTier(spec, memory.view, "fs", root)
        self._tier = self._make_tier()
        self._ids = itertools.count(1)

    def store(self, jobs: Sequence[Job]) -> float:
        return self._all(self._tier.submit_store, jobs, promotion=False)

    def load(self, jobs: Sequence[Job]) -> float:
        return self._all(self._tier.submit_load, jobs, promotion=True)

    def load_beside_stores(self, stores: Sequence[Job], depth: int, loads: Sequence[Job], gap: float) -> list[float]:
        backlog, arriving = iter(stores), iter(loads)
        began: dict[int, float] = {}
        seconds: list[float] = []
        writing = {
            self._submit(self._tier.submit_store, job, promotion=False) for job in itertools.islice(backlog, depth)
        }
        due, saturated = time.perf_counter() + gap, True
        while writing or began:
            now = time.perf_counter()
            if saturated and now >= due:
                due += gap
                job = next(arriving, None)
                if job is not None:
                    began[self._submit(self._tier.submit_load, job, promotion=True)] = now
            for result in self._tier.get_finished_jobs():
                assert result.success
                if result.job_id in began:
                    seconds.append(time.perf_counter() - began.pop(result.job_id))
                    continue
                writing.remove(result.job_id)
                following = next(backlog, None)
                saturated = following is not None
                if following is not None:
                    writing.add(self._submit(self._tier.submit_store, following, promotion=False))
            time.sleep(PEER_POLL_SECONDS)
        return seconds

    def forget(self) -> None:
        self._tier.shutdown()
        remove_tree(self.root)
        self._tier = self._make_tier()

    def close(self) -> None:
        self._tier.shutdown()

    def _submit(self, submit: Callable[[Any], None], job: Job, *, promotion: bool) -> int:
        job_id = next(self._ids)
        keys, slots = job
        submit(self._make_job(job_id, keys, np.asarray(slots), promotion, self._make_context("bench")))
        return job_id

    def _all(self, submit: Callable[[Any], None], jobs: Sequence[Job], *, promotion: bool) -> float:
        began = time.perf_counter()
        pending = {self._submit(submit, job, promotion=promotion) for job in jobs}
        while pending:
            for result in self._tier.get_finished_jobs():
                assert result.success
                pending.remove(result.job_id)
            time.sleep(PEER_POLL_SECONDS)
        return time.perf_counter() - began
