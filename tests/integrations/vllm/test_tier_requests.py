"""What our tiers do for requests that end, or wait too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncoffload.testing import FaultyDisk
from tests.integrations.vllm.tier_rig import (
    HostMemory,
    block_files,
    collected,
    make_tier,
    request,
    some_keys,
    step,
    tier_on,
    transfer,
)

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

from vllm.v1.kv_offload.base import LookupResult

pytestmark = pytest.mark.vllm

HIT, MISS = LookupResult.HIT, LookupResult.MISS


def test_loads_of_an_ended_request_are_skipped_and_stores_go_on(memory: HostMemory, tmp_path: Path) -> None:
    disk = FaultyDisk()
    tier = tier_on(disk, memory, tmp_path)
    keys, new = some_keys(6), some_keys(3, first=100)
    memory.fill(range(6), keys)
    tier.submit_store(transfer(0, keys, range(6), request("before")))
    assert collected(tier)[0].success
    reads = disk.gates["read"].shut()

    busy, leaving = request("busy", keys[:2]), request("leaving", keys[2:])
    for context in (busy, leaving):
        tier.on_new_request(context)
    for job_id, key in enumerate(keys[:2], start=1):
        tier.submit_load(transfer(job_id, [key], [9 + job_id], busy, load=True))
    reads.wait_reached(2)  # both threads
    tier.submit_load(transfer(3, keys[2:], range(20, 24), leaving, load=True))
    tier.submit_store(transfer(4, new, range(3), leaving))
    tier.on_request_finished(leaving)
    assert tier.has_pending_work()
    reads.open()
    results = collected(tier)

    assert sorted(results) == [1, 2, 3, 4]
    assert not results[3].success
    assert results[3].successful_keys == ()
    assert results[4].success
    assert len(block_files(tmp_path)) == len(keys) + len(new)
    assert all(tier.lookup(key, request("later")) is HIT for key in keys), "a skipped load says nothing of the block"
    tier.shutdown()


def test_loads_that_come_too_late_are_given_up_and_computed(memory: HostMemory, tmp_path: Path) -> None:
    disk = FaultyDisk()
    tier = tier_on(disk, memory, tmp_path, load_seconds=0)
    keys = some_keys(6)
    memory.fill(range(6), keys)
    tier.submit_store(transfer(0, keys, range(6), request("before")))
    collected(tier)
    reads = disk.gates["read"].shut()
    for job_id, key in enumerate(keys[:2], start=1):
        tier.submit_load(transfer(job_id, [key], [9 + job_id], request("patient"), load=True))
    reads.wait_reached(2)
    tier.submit_load(transfer(3, keys[2:], range(20, 24), request("patient"), load=True))
    tier.on_schedule_end(step())
    reads.open()
    results = collected(tier)

    assert results[1].success, "what has begun ends"
    assert results[2].success
    assert results[3].successful_keys == ()
    assert [tier.lookup(key, request("patient")) for key in keys] == [HIT] * 2 + [MISS] * 4
    tier.submit_store(transfer(4, keys[2:4], [2, 3], request("patient")))
    collected(tier)
    assert [tier.lookup(key, request("next")) for key in keys] == [HIT] * 4 + [MISS] * 2
    tier.shutdown()


@pytest.mark.parametrize("history", ["waiting", "scheduled", "preempted"])
def test_what_a_waiting_request_shares_is_loaded_all_the_same(memory: HostMemory, tmp_path: Path, history: str) -> None:
    disk = FaultyDisk()
    tier = tier_on(disk, memory, tmp_path)
    keys = some_keys(6)
    memory.fill(range(6), keys)
    tier.submit_store(transfer(0, keys, range(6), request("before")))
    collected(tier)
    reads = disk.gates["read"].shut()

    busy, leaving, sharing = request("busy"), request("leaving", keys[2:]), request("sharing", keys[2:4])
    for context in (busy, leaving, sharing):
        tier.on_new_request(context)
    if history != "waiting":
        tier.on_schedule_end(step(new=["sharing"]))
    if history == "preempted":
        tier.on_schedule_end(step(preempted=["sharing"]))
    for job_id, key in enumerate(keys[:2], start=1):
        tier.submit_load(transfer(job_id, [key], [9 + job_id], busy, load=True))
    reads.wait_reached(2)
    tier.submit_load(transfer(3, keys[2:], range(20, 24), leaving, load=True))
    tier.on_request_finished(leaving)
    reads.open()

    result = collected(tier)[3]
    assert result.successful_keys == (() if history == "scheduled" else tuple(keys[2:4]))
    tier.shutdown()


def test_the_stores_of_a_hundred_requests_that_end_at_once_are_all_on_disk(tmp_path: Path) -> None:
    memory = HostMemory(400)
    tier = make_tier(memory, {"type": "FileSystemTier", "root_dir": str(tmp_path)})
    requests = [request(f"short {i}") for i in range(100)]
    for i, context in enumerate(requests):
        tier.on_new_request(context)
        tier.submit_store(transfer(i, some_keys(2, first=2 * i), [2 * i, 2 * i + 1], context))
    for context in requests:
        tier.on_request_finished(context)
    results = collected(tier)
    assert len(results) == 100
    assert all(result.success for result in results.values())
    assert len(block_files(tmp_path)) == 200
    tier.shutdown()
