"""The collector: one value for each series, whatever the stack is and whatever is wrong with it."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import asyncoffload.metrics
from asyncoffload import ConfigError, Offloader, OffloadingEvent
from asyncoffload.aio.durations import DurationCounts
from asyncoffload.metrics import StackCollector
from asyncoffload.metrics.readings import readings_of
from asyncoffload.metrics.watching import EventCounts, LoopWatch
from asyncoffload.offloader import OffloaderStats
from asyncoffload.sync.offloader import SyncOffloader
from tests.metrics.scraping import Scrape
from tests.offloader.rig import Device, Kept, keys_of, only_in_tiers, settings, turns


def _scrape(collector: StackCollector) -> Scrape:
    registry = CollectorRegistry()
    registry.register(collector)
    return Scrape.parse(generate_latest(registry).decode())


class Stack:
    """Gives out statistics that the test can change, or none."""

    def __init__(self, stats: OffloaderStats) -> None:
        self.now: OffloaderStats | None = stats

    def stats(self) -> OffloaderStats:
        if self.now is None:
            raise RuntimeError("no numbers today")
        return self.now


async def _stats(**figures: float) -> OffloaderStats:
    """Those of a small stack, with figures of its tier's own."""
    device, kept = Device(8), Kept()
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys_of("small", 4))
        stats = offloader.stats()
    return replace(stats, tiers={"gated": {**stats.tiers["gated"], **figures}})


async def test_no_series_is_told_twice(tmp_path: Path) -> None:
    device = Device(8)
    tiers = [
        {"type": "fs", "root_dir": tmp_path / "one"},
        {"type": "fs", "name": "other", "root_dir": tmp_path / "two"},
    ]
    async with Offloader(settings(device, 8, tiers=tiers), kv_caches=device.kv_caches, tiers=[Kept()]) as offloader:
        await only_in_tiers(offloader, device, keys_of("twice", 8))
        series = [(metric.name, labels) for metric, labels, _ in readings_of(offloader.stats())]
        assert len(series) == len(set(series))
        for metric, labels, _ in readings_of(offloader.stats()):
            assert len(labels) == len(metric.labels)


async def test_a_tiers_own_figures_and_bounds() -> None:
    figures = {"used_bytes": 70, "quota_bytes": 100, "evicted": 3, "shed_by_quota": 5, "dreams": 7.5}
    seen = _scrape(StackCollector(Stack(await _stats(**figures))))
    assert seen("tier_used_bytes", tier="gated") == 70
    assert seen("tier_capacity_bytes", tier="gated") == 100
    assert seen("tier_evicted_blocks_total", tier="gated") == 3
    assert seen.by("bound", "tier_shed_blocks_total", tier="gated") == {"quota": 5}
    names = seen.by("name", "tier_stat", tier="gated")
    assert names["dreams"] == 7.5
    assert not names.keys() & figures.keys() - {"dreams"}
    # Such a tier sheds by bounds that it names; another one just sheds.
    assert "tier" not in {dict(labels).get("bound") for _, labels in seen.values}
    seen = _scrape(StackCollector(Stack(replace(await _stats(), shed={"gated": {"tier": 4}}))))
    assert seen.by("bound", "tier_shed_blocks_total", tier="gated") == {"tier": 4}


async def test_no_bound_is_infinite() -> None:
    seen = _scrape(StackCollector(Stack(await _stats(quota_bytes=-1))))
    assert seen("tier_capacity_bytes", tier="gated") == math.inf


async def test_what_was_told_is_told_again_when_it_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    stack = Stack(await _stats(dreams=1))
    collector = StackCollector(stack)
    before = _scrape(collector)
    stack.now = None
    for errors in (1, 2):
        after = _scrape(collector)
        assert after("collection_errors_total") == errors
        for series, value in before.values.items():
            assert after.values[series] == value or series[0].endswith("errors_total")
    assert caplog.text.count("RuntimeError('no numbers today')") == 1
    stack.now = await _stats()  # the tier has nothing to say of dreams
    assert _scrape(collector)("tier_stat", tier="gated", name="dreams") == 1


async def test_figures_that_are_no_numbers_cost_no_metric() -> None:
    stats = await _stats()
    mistaken: Mapping[str, float] = {**stats.tiers["gated"], "blocks": "many"}  # type: ignore[dict-item]
    seen = _scrape(StackCollector(Stack(replace(stats, tiers={"gated": mistaken}))))
    assert seen("collection_errors_total") == 1
    assert seen("slots", state="free") == 8


def test_a_stack_without_a_loop_of_its_own(tmp_path: Path) -> None:
    device = Device(8)
    offloader = SyncOffloader(
        settings(device, 8, tiers=[{"type": "fs", "root_dir": tmp_path}]), kv_caches=device.kv_caches
    )
    try:
        offloader.wait([offloader.submit_store(keys_of("sync", 4), range(4))], 30)
        offloader.settle()
        seen = _scrape(StackCollector(offloader))
        assert seen("store_blocks_total", result="stored") == 4
        assert seen("tier_resident_blocks", tier="fs") == 4
        assert "asyncoffload_event_loop_lag_seconds" not in seen.kinds
    finally:
        offloader.shutdown()


async def test_events_are_counted_and_lost_ones_too() -> None:
    async def told() -> AsyncIterator[OffloadingEvent]:
        yield OffloadingEvent(keys_of("events", 2), 16, "CPU", False)
        yield OffloadingEvent(keys_of("events", 1), 16, "CPU", True, lost=3)
        yield OffloadingEvent(keys_of("more", 1), 16, "new", False)

    counts = EventCounts(["CPU", "fs"])
    await counts.count(told())
    values = {(metric.name.removeprefix("asyncoffload_"), labels): value for metric, labels, value in counts.readings()}
    assert values == {
        ("tier_appeared_blocks_total", ("CPU",)): 2,
        ("tier_appeared_blocks_total", ("fs",)): 0,
        ("tier_appeared_blocks_total", ("new",)): 1,
        ("tier_removed_blocks_total", ("CPU",)): 1,
        ("tier_removed_blocks_total", ("fs",)): 0,
        ("events_lost_total", ()): 3,
    }


async def test_the_lag_of_the_loop_is_sampled_while_it_is_watched() -> None:
    watch = LoopWatch(interval=0.0)

    def samples() -> int:
        lag = next(value for metric, _, value in watch.readings() if metric.kind == "histogram")
        assert isinstance(lag, DurationCounts)
        return lag.count

    async with watch.watching():
        while samples() < 3:
            await turns(1)
    assert all(task.get_name() != "loop lag" for task in asyncio.all_tasks())


def test_without_its_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    monkeypatch.delitem(sys.modules, asyncoffload.metrics.__name__)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncoffload\[metrics\]'") as refusal:
        import_module("asyncoffload.metrics")
    assert isinstance(refusal.value, ConfigError)
