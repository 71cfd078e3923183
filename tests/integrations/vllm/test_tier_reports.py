"""What our tiers tell vLLM: metrics and KV events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.vllm.tier_rig import (
    HostMemory,
    answer,
    collected,
    loop_turn,
    request,
    some_keys,
    specification,
    transfer,
)

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import Locality, Medium

from asyncoffload.integrations.vllm import FileSystemTier
from asyncoffload.integrations.vllm.metrics import BLOCKS, KEYS, PROBED, SECONDS, TierMetrics, tier_metrics

pytestmark = pytest.mark.vllm


def make(memory: HostMemory, root: Path, *, events: bool = False, **config: Any) -> FileSystemTier:
    return FileSystemTier(specification(events=events), memory.view, "FileSystemTier", root_dir=str(root), **config)


def values(report: OffloadingConnectorStats, name: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = report.data["data"].get(name, {})
    return found


def events_of(tier: FileSystemTier) -> list[Any]:
    """Everything announced until now: the tier's loop hands events over with a turn of its own."""
    events = list(tier.take_events())
    loop_turn()
    return [*events, *tier.take_events()]


def test_jobs_are_counted_by_what_became_of_their_blocks(tmp_path: Path) -> None:
    tier = make(HostMemory(), tmp_path, name="nvme")
    keys, absent = some_keys(3), some_keys(1, first=9)
    assert answer(tier, keys[0]).name == "MISS"
    tier.submit_store(transfer(0, keys, range(3), request("a")))
    collected(tier)
    [file, *_] = tmp_path.rglob("*.bin")
    file.write_bytes(b"")
    tier.submit_load(transfer(1, keys + absent, range(8, 12), request("a"), load=True))
    collected(tier)
    report = tier.get_stats()
    assert values(report, KEYS) == {
        ("nvme", "store", "done"): 3,
        ("nvme", "load", "done"): 2,
        ("nvme", "load", "corrupt"): 1,
        ("nvme", "load", "missing"): 1,
    }
    assert set(values(report, SECONDS)) == {("nvme", "load"), ("nvme", "store")}
    assert values(report, PROBED) == {("nvme",): 1}
    assert values(report, BLOCKS) == {("nvme",): 2}
    tier.shutdown()


def test_counters_are_reported_once_and_gauges_now_and_then() -> None:
    now, stats = 0.0, {"blocks": 5.0, "probed": 7.0}
    metrics = TierMetrics("memory", lambda: stats, clock=lambda: now)
    assert values(metrics.take(), BLOCKS) == {("memory",): 5}
    assert metrics.take() is None
    now = 2.0
    stats["probed"] = 9.0
    report = metrics.take()
    assert values(report, PROBED) == {("memory",): 2}
    assert values(report, KEYS) == {}


def test_everything_reported_was_declared(tmp_path: Path) -> None:
    tier = make(HostMemory(), tmp_path)
    tier.submit_store(transfer(0, some_keys(3), range(3), request("a")))
    collected(tier)
    declared = tier_metrics()
    for name, by_labels in tier.get_stats().data["data"].items():
        for labels in by_labels:
            assert len(labels) == len(declared[name].labelnames)
    tier.shutdown()


def test_events_say_what_appeared_and_what_left(tmp_path: Path) -> None:
    tier = make(HostMemory(), tmp_path, events=True, enable_kv_events=True, locality="REMOTE", name="nvme")
    [key] = some_keys(1)
    tier.submit_store(transfer(0, [key], [0], request("a")))
    collected(tier)
    [appeared] = events_of(tier)
    next(tmp_path.rglob("*.bin")).write_bytes(b"")
    tier.submit_load(transfer(1, [key], [1], request("a"), load=True))
    collected(tier)
    [left] = events_of(tier)
    for event, removed in ((appeared, False), (left, True)):
        assert (event.keys, event.removed, event.ownership) == ([key], removed, "nvme")
        assert (event.medium, event.locality) == (Medium.STORAGE, Locality.REMOTE)
    tier.shutdown()


@pytest.mark.parametrize(("engine", "config"), [(True, False), (False, True)])
def test_no_events_unless_both_want_them(
    tmp_path: Path, engine: bool, config: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tier = make(HostMemory(), tmp_path, events=engine, enable_kv_events=config)
    tier.submit_store(transfer(0, some_keys(1), [0], request("a")))
    collected(tier)
    assert not events_of(tier)
    assert ("enable_kv_cache_events" in caplog.text) is config
    tier.shutdown()
