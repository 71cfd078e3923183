"""The whole stack's parts together, without an engine: bytes of all ranks through slots and files, and back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncoffload.device.base import CopyDevice
from asyncoffload.errors import ConfigError, CorruptBlockError, InvalidArgument, TierUnavailable
from asyncoffload.integrations.vllm.checking import LoadChecker
from asyncoffload.memory import shared
from asyncoffload.memory.region import HostRegion
from tests.integrations.vllm.stack_rig import Stack, configuration, kv_caches
from tests.integrations.vllm.tier_rig import some_keys
from tests.workers.kinds import FakeCuda

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_rank_gets_its_own_bytes_back_also_from_disk(world_size: int, tmp_path: Path) -> None:
    config = configuration(
        world_size, cpu_bytes_to_use=12_500 * world_size, secondary_tiers=[{"type": "fs", "root_dir": str(tmp_path)}]
    )
    keys = some_keys(8)
    with Stack(config) as stack:
        before = [rank.content(range(8)) for rank in stack.ranks]
        for first in (0, 4):
            stack.store(keys[first : first + 4], range(first, first + 4))
            stack.settle()
        assert stack.manager._blocks.stats().slots < 8
        for rank in stack.ranks:
            for entry in rank.caches.tensors:
                entry.tensor.zero_()
        for first in (0, 4):
            stack.load(keys[first : first + 4], range(first, first + 4))
        assert all(same(rank.content(range(8)), content) for rank, content in zip(stack.ranks, before, strict=True))
        checkers = [rank.worker._checker for rank in stack.ranks]
        assert [checker.compared for checker in checkers if checker is not None] == [8] * world_size
        assert not stack.manager.has_pending_work()
        assert stack.manager._requests == {}
    assert not shared._groups
    assert len(list(tmp_path.rglob("*.bin"))) == 8


def test_ranks_on_cuda_copy_through_streams_of_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncoffload.integrations.vllm import spec

    with ExitStack() as undo:
        cuda = FakeCuda(undo)

        def device_for(views: Any, region: HostRegion, *, copy_threads: int) -> CopyDevice:  # noqa: ARG001
            assert region.pinned
            return cuda.device(region, *(cuda.place(view) for group in views for view in group))

        monkeypatch.setattr(spec, "pinner_for", lambda views: cuda.pinner())  # noqa: ARG005
        monkeypatch.setattr(spec, "device_for", device_for)
        keys = some_keys(6)
        with Stack(configuration(2)) as stack:
            before = [rank.content(range(6)) for rank in stack.ranks]
            stack.store(keys, range(6))
            for rank in stack.ranks:
                for entry in rank.caches.tensors:
                    entry.tensor.zero_()
            stack.load(keys, range(6))
            assert all(same(rank.content(range(6)), content) for rank, content in zip(stack.ranks, before, strict=True))
            checkers = [rank.worker._checker for rank in stack.ranks]
            assert [checker.compared for checker in checkers if checker is not None] == [6, 6]
        assert cuda.resources()["registered_bytes"] == 0


def test_a_chunk_can_be_entered_in_its_middle_and_left_early() -> None:
    with Stack(configuration(factor=3)) as stack:
        keys = some_keys(2)
        stack.store(keys, range(6))
        [rank] = stack.ranks
        before = rank.content(range(1, 5))
        stack.load(keys, [11, 10, 9, 8], index=1)
        assert same(rank.content([11, 10, 9, 8]), before)


def test_groups_lie_in_slots_of_their_own() -> None:
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    keys = [some_keys(1)[0], some_keys(1)[0][:-1] + b"\x01"]
    with Stack(configuration(n_groups=2)) as stack:
        [rank] = stack.ranks
        context = stack.begin("both")
        output = stack.manager.prepare_store(keys, context)
        assert output is not None
        stack._transfer("submit_store", GPULoadStoreSpec([3, 4], [1, 1], [0, 7]), output.store_spec)
        stack.manager.complete_store(set(keys), context)
        before = rank.content([3])[:2] + rank.content([4])[2:]
        spec = stack.manager.prepare_load(keys, context)
        stack._transfer("submit_load", spec, GPULoadStoreSpec([8, 9], [1, 1], [0, 7]))
        stack.manager.complete_load(set(keys), context)
        assert same(rank.content([8])[:2] + rank.content([9])[2:], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 2, "n_groups": 2}, "chunks of 2 blocks are not supported for a model with 2 groups"),
        ({"cpu_bytes_to_use": 100}, "cpu_bytes_to_use is 100"),
        ({"cpu_byte": 1}, "unknown setting 'cpu_byte': did you mean 'cpu_bytes_to_use'"),
    ],
)
def test_what_is_not_supported_is_refused_at_the_start(arguments: dict[str, Any], message: str) -> None:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

    with pytest.raises(ConfigError, match=message):
        AsyncOffloadingSpec(configuration(**arguments))


def test_caches_that_it_cannot_copy_are_refused_at_the_start() -> None:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

    with pytest.raises(InvalidArgument, match="the KV caches lie on meta"):
        AsyncOffloadingSpec(configuration()).get_worker(kv_caches(0, device="meta"))
    with pytest.raises(ConfigError, match="announced 2 groups of layers and registered 1"):
        AsyncOffloadingSpec(configuration(n_groups=2)).get_worker(kv_caches(0))
    uneven = kv_caches(0)
    uneven.group_data_refs[0] *= 2
    with pytest.raises(ConfigError, match="layers that are not spread evenly over the ranks"):
        AsyncOffloadingSpec(configuration()).get_worker(uneven)
    assert not shared._groups


def test_caches_cannot_move() -> None:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

    spec, caches = AsyncOffloadingSpec(configuration()), kv_caches(0)
    worker = spec.get_worker(caches)
    assert spec.get_worker(caches) is worker
    with pytest.raises(ConfigError, match="registered again"):
        spec.get_worker(kv_caches(0))
    worker.shutdown()


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncoffload.integrations.vllm import spec

    monkeypatch.setattr(spec, "MEETING_SECONDS", 0)
    config = configuration(2)
    worker = spec.AsyncOffloadingSpec(config).get_worker(kv_caches(0))
    with pytest.raises(TierUnavailable, match="rank 1 did not join"):
        spec.AsyncOffloadingSpec(config).get_manager()
    worker.shutdown()
    assert not shared._groups


def test_a_tier_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

    (tmp_path / "file").touch()
    config = configuration(secondary_tiers=[{"type": "fs", "root_dir": str(tmp_path / "file")}])
    worker = AsyncOffloadingSpec(config).get_worker(kv_caches(0))
    with pytest.raises(Exception, match="file"):
        AsyncOffloadingSpec(config).get_manager()
    worker.shutdown()
    assert not shared._groups


def test_metrics_are_declared_without_starting_anything() -> None:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec

    definitions = AsyncOffloadingSpec.build_metric_definitions(configuration().extra_config)
    with Stack(configuration()) as stack:
        stack.store(some_keys(2), range(2))
        stack.load(some_keys(2), range(2))
        report = stack.manager.get_stats()
        assert stack.manager.get_stats() is None
    assert set(report.data["data"]) <= definitions.keys()
    reduced = report.reduce()
    assert reduced["vllm:asyncoffload_blocks:('stored',)"] == 2
    assert reduced["vllm:asyncoffload_checked_loads:('rank 0', 'compared')"] == 2


def test_versions_of_a_block_are_told_apart_from_foreign_bytes() -> None:
    from asyncoffload.types import GPULoadStoreSpec

    tensor = torch.arange(40, dtype=torch.int8).view(10, 4)
    checker = LoadChecker([[tensor]], 2)
    [key] = some_keys(1)
    for blocks in ((0, 1), (2, 3)):
        checker.stored([key], GPULoadStoreSpec(blocks))
    checker.loaded([key], GPULoadStoreSpec((2, 3)))
    checker.loaded([key], GPULoadStoreSpec((1,), block_indices=(1,)))
    checker.loaded(some_keys(1, first=9), GPULoadStoreSpec((5, 6)))
    assert (checker.compared, checker.unknown) == (2, 1)
    with pytest.raises(CorruptBlockError, match=key.hex()):
        checker.loaded([key], GPULoadStoreSpec((0, 3)))
