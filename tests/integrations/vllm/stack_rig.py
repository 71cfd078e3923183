"""The whole stack without an engine: one scheduler and its ranks in this process, over KV caches made up here."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from asyncoffload.keys import OffloadKey
from tests.integrations.vllm.tier_rig import request, specification, step

PAGE, PADDING = 1000, 24
"""Bytes of one layer's page of a device block, and behind it."""
DEVICE_BLOCKS = 12


def configuration(world_size: int = 1, *, n_groups: int = 1, factor: int = 1, **keys: Any) -> Any:
    """What vLLM would tell the scheduler: groups of two layers."""
    from vllm.v1.kv_offload.config import OffloadingCacheConfig, OffloadingGroupConfig

    groups = tuple(OffloadingGroupConfig(32, (f"a.{g}", f"b.{g}"), g) for g in range(n_groups))
    return specification(
        tp_size=world_size,
        groups=groups,
        worker_kv_bytes_per_block=2 * (PAGE + PADDING),
        cache=OffloadingCacheConfig(32, factor),
        extra_config={"cpu_bytes_to_use": "80KiB", "verify_loads": True, "revision": "", **keys},
        engine_id=uuid.uuid4().hex,
    ).config


def kv_caches(rank: int, n_groups: int = 1, device: str = "cpu") -> Any:
    """A rank's caches: per group two layers, whose pages have padding behind them."""
    from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor

    tensors = [
        torch.randint(0, 100, (DEVICE_BLOCKS, PAGE + PADDING), dtype=torch.int8, device=device)
        for _ in range(2 * n_groups)
    ]
    for tensor in tensors:
        tensor += rank
    refs = [[CanonicalKVCacheRef(2 * g + layer, PAGE) for layer in range(2)] for g in range(n_groups)]
    return CanonicalKVCaches([CanonicalKVCacheTensor(tensor, PAGE + PADDING) for tensor in tensors], refs)


class Rank:
    """A worker and its caches."""

    def __init__(self, config: Any, rank: int) -> None:
        from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

        self.caches = kv_caches(rank, len(config.groups))
        own = replace(config, parallel=replace(config.parallel, rank=rank))
        self.worker = AsyncOffloadingSpec(own).get_worker(self.caches)

    def content(self, blocks: Sequence[int]) -> list[torch.Tensor]:
        """A copy of the data of some blocks, layer by layer."""
        return [entry.tensor[list(blocks), :PAGE].clone() for entry in self.caches.tensors]


class Stack:
    """A scheduler's manager and all of its ranks, driven as the connector drives them."""

    def __init__(self, config: Any) -> None:
        from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

        self._closing = ExitStack()
        self.config = config
        self.ranks = []
        for rank in range(config.parallel.world_size):
            self.ranks.append(Rank(config, rank))
            self._closing.callback(self.ranks[-1].worker.shutdown)
        self.manager = AsyncOffloadingSpec(config).get_manager()
        self._closing.callback(self.manager.shutdown)
        self._job_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def store(self, keys: Sequence[OffloadKey], blocks: Sequence[int], name: str = "writes") -> None:
        """Store device blocks of group 0, on all ranks, and complete it."""
        context = self.begin(name)
        output = self.manager.prepare_store(keys, context)
        assert output is not None
        assert output.keys_to_store == list(keys)
        self._transfer("submit_store", device(blocks), output.store_spec)
        self.manager.complete_store(set(keys), context)
        self.manager.on_request_finished(context)

    def load(self, keys: Sequence[OffloadKey], blocks: Sequence[int], index: int = 0, name: str = "reads") -> None:
        """Look blocks up step by step until all are there, and load them."""
        from vllm.v1.kv_offload.base import LookupResult

        context = self.begin(name)
        while True:
            answers = [self.manager.lookup(key, context) for key in keys]
            if set(answers) == {LookupResult.HIT}:
                break
            assert LookupResult.MISS not in answers
            self.manager.on_schedule_end(step())
        spec = self.manager.prepare_load(keys, context)
        self.manager.on_schedule_end(step())
        self._transfer("submit_load", spec, device(blocks, index))
        self.manager.complete_load(set(keys), context)
        self.manager.on_request_finished(context)

    def begin(self, name: str) -> Any:
        context = request(name)
        self.manager.on_new_request(context)
        return context

    def settle(self) -> None:
        """Wait until nothing is on its way to a tier, or from one."""
        self.manager._blocks.drain_jobs(30)

    def _transfer(self, call: str, source: Any, destination: Any) -> None:
        self._job_id += 1
        for rank in self.ranks:
            assert getattr(rank.worker, call)(self._job_id, source, destination)
            rank.worker.wait({self._job_id, 999_999})
            [result] = rank.worker.get_finished()
            assert (result.job_id, result.success) == (self._job_id, True)
            assert rank.worker.get_finished() == []


def device(blocks: Sequence[int], index: int = 0) -> Any:
    """Device blocks of group 0, of which the first is the request's ``index``-th."""
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    return GPULoadStoreSpec(list(np.asarray(blocks)), [len(blocks)], [index])
