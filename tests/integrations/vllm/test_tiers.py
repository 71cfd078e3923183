"""Our tiers under vLLM's interface: what becomes of jobs, and what is answered when."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.errors import ConfigError
from asyncoffload.testing import FaultyDisk
from tests.integrations.vllm.tier_rig import (
    CHUNK_BYTES,
    MODULE,
    HostMemory,
    answer,
    block_files,
    collected,
    make_tier,
    request,
    some_keys,
    specification,
    tier_on,
    transfer,
)

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

from vllm.v1.kv_offload.base import LookupResult, Medium
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

pytestmark = pytest.mark.vllm

HIT, MISS = LookupResult.HIT, LookupResult.MISS


@pytest.fixture(params=["FileSystemTier", "InMemoryTier"])
def tier(request: pytest.FixtureRequest, memory: HostMemory, tmp_path: Path) -> Iterator[Any]:
    more = {"root_dir": str(tmp_path)} if request.param == "FileSystemTier" else {}
    tier = make_tier(memory, {"type": request.param, **more})
    yield tier
    tier.shutdown()


# ---- jobs


def test_blocks_come_back_as_they_were(tier: Any, memory: HostMemory) -> None:
    keys = some_keys(8)
    memory.fill(range(8), keys)
    tier.submit_store(transfer(0, keys, range(8), request("a")))
    stored = collected(tier)[0]
    tier.submit_load(transfer(1, keys, range(15, 7, -1), request("b"), load=True))
    loaded = collected(tier)[1]
    assert memory.holds(range(15, 7, -1), keys)
    for result in (stored, loaded):
        assert (result.success, result.successful_keys, result.transfer_bytes) == (True, None, 8 * CHUNK_BYTES)
        assert result.transfer_time > 0


def test_every_job_has_one_result_and_is_pending_until_then(tier: Any) -> None:
    assert not tier.has_pending_work()
    for job_id, key in enumerate(some_keys(20)):
        tier.submit_store(transfer(job_id, [key], [job_id], request("a")))
    tier.drain_jobs()
    assert tier.has_pending_work()
    assert sorted(result.job_id for result in tier.get_finished_jobs()) == list(range(20))
    assert not tier.has_pending_work()
    assert not list(tier.get_finished_jobs())


def test_after_a_drain_one_collection_has_everything(tier: Any) -> None:
    for job_id in range(40):
        keys = some_keys(64, first=64 * job_id)
        tier.submit_store(transfer(job_id, keys, range(64), request("a")))
    tier.drain_jobs()
    assert len(list(tier.get_finished_jobs())) == 40


def test_a_load_says_which_blocks_arrived(tier: Any, memory: HostMemory) -> None:
    there, absent = some_keys(2), some_keys(2, first=9)
    memory.fill(range(2), there)
    tier.submit_store(transfer(0, there, range(2), request("a")))
    collected(tier)
    mixed = [absent[0], there[0], absent[1], there[1]]
    tier.submit_load(transfer(1, mixed, range(8, 12), request("a"), load=True))
    result = collected(tier)[1]
    assert not result.success
    assert result.successful_keys == tuple(there)
    assert result.transfer_bytes == 2 * CHUNK_BYTES
    assert memory.holds([9, 11], there)


# ---- answers


def test_what_was_stored_is_a_hit_and_all_else_a_miss(tier: Any) -> None:
    key, other = some_keys(2)
    assert answer(tier, key) is MISS
    tier.submit_store(transfer(0, [key], [0], request("a")))
    collected(tier)
    assert tier.lookup(key, request("b")) is HIT
    assert answer(tier, other) is MISS


def test_a_failed_load_is_a_miss_until_a_store_has_ended(memory: HostMemory, tmp_path: Path) -> None:
    tier = make_tier(memory, {"type": "FileSystemTier", "root_dir": str(tmp_path)})
    [key] = some_keys(1)
    memory.fill([0], [key])
    tier.submit_store(transfer(0, [key], [0], request("a")))
    collected(tier)
    [path] = block_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    assert tier.lookup(key, request("b")) is HIT
    tier.submit_load(transfer(1, [key], [1], request("b"), load=True))
    assert collected(tier)[1].successful_keys == ()
    assert tier.lookup(key, request("b")) is MISS
    assert answer(tier, key) is MISS

    tier.submit_store(transfer(2, [key], [0], request("b")))
    assert collected(tier)[2].success
    assert tier.lookup(key, request("c")) is HIT
    tier.submit_load(transfer(3, [key], [2], request("c"), load=True))
    assert collected(tier)[3].success
    assert memory.holds([2], [key])
    tier.shutdown()


def test_stores_that_would_pin_more_than_half_of_the_memory_are_shed(memory: HostMemory, tmp_path: Path) -> None:
    disk = FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = tier_on(disk, memory, tmp_path)
    for job_id, key in enumerate(some_keys(64)):
        tier.submit_store(transfer(job_id, [key], [job_id], request("a")))
    writes.wait_reached()
    writes.open()
    stored = [result.success for result in collected(tier).values()]
    assert sum(stored) == len(block_files(tmp_path))
    assert 32 <= sum(stored) < 64
    tier.shutdown()


def test_the_bound_on_the_queue_is_for_stores_only(memory: HostMemory, tmp_path: Path) -> None:
    tier = make_tier(memory, {"type": "FileSystemTier", "root_dir": str(tmp_path), "max_queued_bytes": CHUNK_BYTES})
    keys = some_keys(40)
    memory.fill(range(40), keys)
    tier.submit_store(transfer(0, keys, range(40), request("a")))  # larger than the bound, but alone
    assert collected(tier)[0].success
    for job_id, key in enumerate(keys, start=1):
        tier.submit_load(transfer(job_id, [key], [job_id], request("a"), load=True))
    assert all(result.success for result in collected(tier).values())
    tier.shutdown()


def test_blocks_of_an_earlier_process_are_found(memory: HostMemory, tmp_path: Path) -> None:
    keys = some_keys(4)
    memory.fill(range(4), keys)
    config = {"type": "FileSystemTier", "root_dir": str(tmp_path)}
    first = make_tier(memory, config)
    first.submit_store(transfer(0, keys, range(4), request("a")))
    collected(first)
    first.shutdown()
    second = make_tier(memory, config)
    assert [answer(second, key) for key in keys] == [HIT] * 4
    second.submit_load(transfer(0, keys, range(8, 12), request("b"), load=True))
    assert collected(second)[0].success
    assert memory.holds(range(8, 12), keys)
    second.shutdown()


@pytest.mark.parametrize(
    "other",
    [
        {"spec": {"tp_size": 2}},
        {"spec": {"kv_cache_layout": "HND"}},
        {"spec": {"canonical_layout": True}},
        {"config": {"revision": "another"}},
    ],
    ids=["parallel sizes", "element order", "canonical", "revision"],
)
def test_engines_whose_bytes_differ_share_nothing(memory: HostMemory, tmp_path: Path, other: Any) -> None:
    config = {"type": "FileSystemTier", "root_dir": str(tmp_path)}
    [key] = some_keys(1)
    one = make_tier(memory, config)
    another = make_tier(memory, config | other.get("config", {}), specification(**other.get("spec", {})))
    one.submit_store(transfer(0, [key], [0], request("a")))
    collected(one)
    assert answer(one, key) is HIT
    assert answer(another, key) is MISS
    one.shutdown()
    another.shutdown()


# ---- beginning and end


def test_nothing_is_remembered_of_requests_that_ended(tier: Any) -> None:
    for i, key in enumerate(some_keys(10)):
        context = request(f"request {i}", [key])
        tier.on_new_request(context)
        tier.submit_store(transfer(2 * i, [key], [i], context))
        tier.submit_load(transfer(2 * i + 1, [key], [32 + i], context, load=True))
        tier.on_request_finished(context)
    collected(tier)
    book = tier._jobs
    assert not any((book._entries, book._loads, book._loads_of, book._live, book._waiting))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "FileSystemTier"}, "root_dir is missing"),
        ({"type": "FileSystemTier", "root_dir": "/tmp", "io_thread": 3}, "'io_thread'.*'io_threads'"),
        ({"type": "FileSystemTier", "root_dir": "/tmp", "zzz": 3}, "'zzz'.*known are.*io_threads.*root_dir"),
        ({"type": "FileSystemTier", "root_dir": "/tmp", "locality": "NEAR"}, "locality = 'NEAR'.*LOCAL.*REMOTE"),
        ({"type": "FileSystemTier", "root_dir": "/tmp", "max_queued_bytes": "much"}, "'much' is not a size"),
        ({"type": "FileSystemTier", "root_dir": "/proc/version/x"}, "/proc/version/x"),
        ({"type": "InMemoryTier", "root_dir": "/tmp"}, "'root_dir'"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(memory: HostMemory, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tier(memory, config)


def test_all_options_are_taken(memory: HostMemory, tmp_path: Path) -> None:
    tier = make_tier(
        memory,
        {
            "type": "FileSystemTier",
            "root_dir": str(tmp_path),
            "name": "nvme",
            "io_threads": 2,
            "direct_io": "off",
            "max_queued_bytes": "64MiB",
            "locality": "REMOTE",
            "enable_kv_events": False,
            "revision": "r1",
            "drain_seconds": 1,
            "load_seconds": 2.5,
            "backpressure": {"backpressure_cls": "EMABackpressureDetector"},
        },
    )
    assert (tier.locality.value, tier.medium, tier.tier_type) == ("REMOTE", Medium.STORAGE, "FileSystemTier")
    assert tier.bp_detector is not None
    tier.shutdown()


def test_after_the_end_the_memory_can_be_given_back(memory: HostMemory, tmp_path: Path) -> None:
    for config in ({"type": "FileSystemTier", "root_dir": str(tmp_path)}, {"type": "InMemoryTier"}):
        tier = make_tier(memory, config)
        keys = some_keys(4)
        tier.submit_store(transfer(0, keys, range(4), request("a")))
        tier.submit_load(transfer(1, keys, range(8, 12), request("a"), load=True))
        tier.shutdown()
        tier.shutdown()
    memory.close()


def test_stores_that_are_queued_at_the_end_reach_the_disk(tmp_path: Path) -> None:
    memory = HostMemory(400)
    tier = make_tier(memory, {"type": "FileSystemTier", "root_dir": str(tmp_path), "io_threads": 1})
    for i in range(50):
        tier.submit_store(transfer(i, some_keys(4, first=4 * i), range(4 * i, 4 * i + 4), request("a")))
    tier.shutdown()
    assert len(block_files(tmp_path)) == 200


def test_declaring_metrics_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread} was started"))
    tier_class = SecondaryTierFactory.get_tier_class(MODULE | {"type": "FileSystemTier"})
    assert tier_class.build_metric_definitions({"type": "FileSystemTier", "root_dir": os.devnull})
