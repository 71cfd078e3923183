"""What ``facade.py`` measures: a tier's sync facade beside vLLM's file system tier, and the worker's sync facade."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fs_sides import Memory, Vllm

from asyncoffload.keys import OffloadKey
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.tier import SyncSecondaryTier
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.types import (
    CPULoadStoreSpec,
    GPULoadStoreSpec,
    KVGroup,
    KVLayout,
    LookupResult,
    TransferJob,
    TransferSpec,
)
from asyncoffload.workers.device_host import DeviceHostHandler


class TierSide(ABC):
    """A tier as a step-driven engine sees it. Jobs are made by the engine, so their making is not timed."""

    name: str

    @abstractmethod
    def job(self, keys: Sequence[OffloadKey], *, is_load: bool) -> Any:
        """A job over the first slots."""

    @abstractmethod
    def submit(self, jobs: Sequence[Any], *, is_load: bool) -> None:
        """What the engine does at the begin of a step."""

    @abstractmethod
    def collect(self) -> int:
        """What it does at the end; returns how many jobs had ended well."""

    @abstractmethod
    def lookup(self, keys: Sequence[OffloadKey]) -> int:
        """Ask for each key alone; returns how many are hits."""

    @abstractmethod
    def end_step(self) -> None:
        """What the engine calls once per step behind its lookups."""

    @abstractmethod
    def drain(self) -> None:
        """Wait until all jobs have ended: the forward pass of the engine."""

    @abstractmethod
    def close(self) -> None:
        """Shut down."""


class OurTier(TierSide):
    """``SyncSecondaryTier`` over the file system tier."""

    name = "asyncoffload"

    def __init__(self, memory: Memory, root: str) -> None:
        layout = KVLayout("bench", "bfloat16", 16, (KVGroup((memory.slot_bytes,)),))
        n = auto_io_threads(memory.slot_bytes)
        self._tier = SyncSecondaryTier(FileSystemTierManager(layout, memory.view, "fs", root, n, n))

    def job(self, keys: Sequence[OffloadKey], *, is_load: bool) -> TransferJob:  # noqa: ARG002
        return TransferJob(keys, range(len(keys)))

    def submit(self, jobs: Sequence[TransferJob], *, is_load: bool) -> None:
        submit = self._tier.submit_load if is_load else self._tier.submit_store
        for job in jobs:
            submit(job)

    def collect(self) -> int:
        return len(self._tier.get_finished())

    def lookup(self, keys: Sequence[OffloadKey]) -> int:
        lookup, hit, hits = self._tier.lookup, LookupResult.HIT, 0
        for key in keys:
            if lookup(key) is hit:
                hits += 1
        return hits

    def end_step(self) -> None:
        return

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        self._tier.shutdown()


class VllmTier(TierSide):
    """vLLM's file system tier, as its scheduler calls it."""

    name = "vllm"

    def __init__(self, memory: Memory, root: str) -> None:
        from vllm.v1.kv_offload.base import LookupResult as VllmLookupResult

        self._side = Vllm(memory, root)
        self._tier = self._side._tier
        self._hit = VllmLookupResult.HIT
        self._context = self._side._make_context("bench")
        self._ids = itertools.count(1)

    def job(self, keys: Sequence[OffloadKey], *, is_load: bool) -> Any:
        return self._side._make_job(next(self._ids), keys, np.arange(len(keys)), is_load, self._context)

    def submit(self, jobs: Sequence[Any], *, is_load: bool) -> None:
        submit = self._tier.submit_load if is_load else self._tier.submit_store
        for job in jobs:
            submit(job)

    def collect(self) -> int:
        return len(list(self._tier.get_finished_jobs()))

    def lookup(self, keys: Sequence[OffloadKey]) -> int:
        lookup, hit, context, hits = self._tier.lookup, self._hit, self._context, 0
        for key in keys:
            if lookup(key, context) is hit:
                hits += 1
        return hits

    def end_step(self) -> None:
        self._tier.on_schedule_end(None)

    def drain(self) -> None:
        self._tier.drain_jobs()

    def close(self) -> None:
        self._side.close()


class OurWorker:
    """``SyncOffloadingWorker`` over the device-host handler, with tensors in host memory."""

    def __init__(self, n_blocks: int, page_bytes: int) -> None:
        cache = torch.zeros((n_blocks, page_bytes), dtype=torch.uint8)
        layout = KVLayout("bench", "uint8", 16, (KVGroup((page_bytes,)),))
        self._region = HostRegion(n_blocks, page_bytes)
        self._worker = SyncOffloadingWorker()
        handler = DeviceHostHandler([[cache]], self._region, layout)
        self._worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
        self._worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, handler)
        self._ids = itertools.count(1)

    def job(self, n_keys: int, *, is_load: bool) -> tuple[int, TransferSpec]:
        host, device = CPULoadStoreSpec(range(n_keys)), GPULoadStoreSpec(range(n_keys))
        return next(self._ids), (host, device) if is_load else (device, host)

    def submit(self, jobs: Sequence[tuple[int, TransferSpec]]) -> None:
        for job_id, spec in jobs:
            if not self._worker.transfer_async(job_id, spec):
                raise AssertionError("the benchmark's transfers should all be launched")

    def collect(self) -> int:
        return len(self._worker.get_finished())

    def close(self) -> None:
        self._worker.shutdown()
        self._region.close()
