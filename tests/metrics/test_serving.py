"""The endpoint: safe beside a working loop, answering while it is stuck, gone when its block is left."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from asyncoffload import ConfigError, Offloader
from asyncoffload.metrics import collecting, serve_metrics
from asyncoffload.metrics.catalogue import METRICS
from tests.metrics.scraping import Scrape
from tests.metrics.traffic import VERBS, traffic
from tests.offloader.rig import Device, Kept, Leaks, keys_of, settings, turns


async def test_no_metric_disappears_or_goes_back_while_the_stack_works(tmp_path: Path) -> None:
    device, kept, chance = Device(8), Kept(hints=False), random.Random(5)
    keys = keys_of("run", 64)
    plan = settings(device, 16, tiers=[{"type": "fs", "root_dir": tmp_path, "io_threads": 2}], cascade_blocks=4)
    scrapes: list[Scrape] = []
    enough = Event()

    def watch(url: str) -> None:
        while not enough.is_set():
            scrapes.append(Scrape.now(url))

    async with (
        Offloader(plan, kv_caches=device.kv_caches, tiers=[kept]) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        with ThreadPoolExecutor(2) as watchers:
            watching = watchers.submit(watch, server.url)
            try:
                for verb in itertools.cycle(VERBS):
                    with kept.tier.faults.raises(verb, OSError(errno.EIO, "the test broke this tier"), chance=0.5):
                        await asyncio.gather(*(traffic(offloader, keys, chance, 12) for _ in range(4)))
                    if watching.done() or (verb == VERBS[-1] and len(scrapes) >= 12):
                        break
                await offloader.settle()
            finally:
                enough.set()
            watching.result()
        last = await Scrape.of(server.url)
        stats = offloader.stats()

    for before, after in itertools.pairwise([*scrapes, last]):
        assert before.kinds.items() <= after.kinds.items()
        assert before.values.keys() <= after.values.keys()
        for series, value in before.growing.items():
            assert after.values[series] >= value, series
        slots = sum(value for (name, _), value in after.values.items() if name == "asyncoffload_slots")
        assert abs(slots - 16) <= 16  # read one by one while they change
    assert last("collection_errors_total") == 0
    assert {name for name in last.kinds if "hung" not in name} <= {m.name.removesuffix("_total") for m in METRICS}
    for call, calls in stats.verbs.items():
        assert last.by("result", "calls_total", call=call) == {
            result: count for result in ("ok", "cancelled", "failed") if (count := getattr(calls, result))
        }
    assert sum(last.by("state", "slots").values()) == 16
    assert last("event_loop_lag_seconds_count") > 0


async def test_it_answers_while_the_event_loop_is_stuck() -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        await offloader.store(keys_of("stuck", 4), range(4))
        async with serve_metrics(offloader, 0) as server:
            with ThreadPoolExecutor(1) as elsewhere:
                seen = elsewhere.submit(Scrape.now, server.url).result(timeout=30)  # on the loop's thread, on purpose
            assert seen("store_blocks_total", result="stored") == 4
            assert seen("event_loop_stalled_seconds") >= 0


async def test_after_its_block_nobody_answers_and_nothing_is_left() -> None:
    leaks, device = Leaks(), Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        async with serve_metrics(offloader, 0) as server:
            assert server.port > 0
            assert repr(server) == f"<MetricsServer http://127.0.0.1:{server.port}/metrics>"
            await Scrape.of(server.url)
        assert repr(server) == "<MetricsServer not listening>"
        with pytest.raises(URLError):
            await Scrape.of(server.url)
    await asyncio.get_running_loop().shutdown_default_executor()  # of this test's scrapes
    assert leaks.none()


async def test_it_may_outlive_the_stack() -> None:
    device = Device(8)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches)
    async with serve_metrics(offloader, 0) as server:
        await offloader.store(keys_of("outlived", 4), range(4))
        await offloader.aclose()
        assert (await Scrape.of(server.url))("store_blocks_total", result="stored") == 4


async def test_cancelled_at_any_turn_it_leaves_nothing() -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        leaks = Leaks()
        for n_turns in (0, 2, 9):
            entered = asyncio.Event()

            async def serve(entered: asyncio.Event = entered) -> None:
                async with serve_metrics(offloader, 0):
                    entered.set()
                    await asyncio.Event().wait()

            serving = asyncio.create_task(serve())
            await turns(n_turns)
            if n_turns == 9:
                await entered.wait()
            serving.cancel()
            await asyncio.wait([serving])
            assert serving.cancelled()
            assert leaks.none()


async def test_an_address_that_cannot_be_had_is_said() -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        async with serve_metrics(offloader, 0) as server:
            with pytest.raises(ConfigError, match=rf"127\.0\.0\.1, port {server.port}: .*choose another port"):
                async with serve_metrics(offloader, server.port):
                    pass
        with pytest.raises(ConfigError, match="port 70000"):
            async with serve_metrics(offloader, 70_000):
                pass


async def test_a_registry_of_ones_own_keeps_what_else_it_has() -> None:
    device, registry = Device(8), CollectorRegistry()
    Gauge("mine", "Something else.", registry=registry).set(3)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        async with serve_metrics(offloader, 0, registry=registry) as server:
            assert server.registry is registry
            seen = await Scrape.of(server.url)
            assert seen.values["mine", frozenset()] == 3
            with pytest.raises(ValueError, match="Duplicated timeseries"):
                async with collecting(offloader, registry):
                    pass
            assert (await Scrape.of(server.url)).kinds == seen.kinds
        assert "asyncoffload" not in generate_latest(registry).decode()
        async with collecting(offloader, registry) as again:
            assert again is registry


async def test_openmetrics_is_spoken_too() -> None:
    device = Device(8)
    async with (
        Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader,
        serve_metrics(offloader, 0) as server,
    ):

        def ask() -> str:
            from urllib.request import Request

            asked = Request(server.url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            with urlopen(asked) as answer:
                return str(answer.read().decode())

        text = await asyncio.get_running_loop().run_in_executor(None, ask)
    assert "# UNIT asyncoffload_tier_bytes bytes" in text
    assert "# UNIT asyncoffload_call_duration_seconds seconds" in text
    assert text.endswith("# EOF\n")
