"""What is scraped is what has happened: exact counts of a real stack."""

from __future__ import annotations

import asyncio
import errno
import time
from glob import glob
from pathlib import Path

from asyncoffload import FileSystemTierManager, KVLayout, Offloader, Priority, RequestContext, Status
from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.keys import block_hash_of
from asyncoffload.metrics import serve_metrics
from tests.aio.gate import Gate
from tests.metrics.scraping import Scrape
from tests.offloader.rig import CopyGate, Device, Kept, at_rest, keys_of, only_in_tiers, settings, turns


def _flip(root: Path, name: str) -> None:
    (path,) = map(Path, glob(f"{root}/**/{name}.bin", recursive=True))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_traffic_over_a_real_directory(tmp_path: Path) -> None:
    device = Device(16)
    size = device.block_bytes
    first, second, unknown = keys_of("first", 8), keys_of("second", 8), keys_of("unknown", 4)
    plan = settings(device, 8, tiers=[{"type": "fs", "root_dir": tmp_path, "io_threads": 2}])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader, serve_metrics(offloader, 0) as server:
        start = await Scrape.of(server.url)
        assert not any(value for (name, _), value in start.growing.items() if "loop_lag" not in name)
        for keys in (first, second):
            device.fill(keys, range(8))
            await offloader.store(keys, range(8))
            await offloader.settle()
        assert await offloader.lookup([*first, *unknown]) == 8
        for _ in range(2):
            assert (await offloader.load(first, range(8))).blocks == 8
        _flip(tmp_path, block_hash_of(second[5]).hex())
        assert (await offloader.load(second, range(8))).blocks == 5
        assert (await offloader.load(unknown, range(4))).blocks == 0
        assert (await offloader.store(first[:3] + unknown[:2], range(5), RequestContext())).shed == 0
        await offloader.settle()
        assert await at_rest(offloader)
        await turns()
        seen, stats = await Scrape.of(server.url), offloader.stats()

    assert seen.by("call", "calls_total", result="ok") == {"lookup": 1, "load": 4, "store": 3}
    assert seen.by("call", "call_duration_seconds_count") == {"lookup": 1, "load": 4, "store": 3}
    assert (seen("lookup_queried_blocks_total"), seen("lookup_hit_blocks_total")) == (12, 8)
    assert seen.by("tier", "load_hit_blocks_total") == {"CPU": 8, "fs": 8 + 5}
    assert seen.by("reason", "load_miss_blocks_total") == {"corrupt": 3, "missing": 4}
    stored = seen("store_blocks_total", result="stored")
    assert stored + seen("store_blocks_total", result="present") == 8 + 8 + 5

    assert seen("tier_bytes_total", tier="CPU", direction="store") == stored * size
    assert seen("tier_bytes_total", tier="CPU", direction="load") == (8 + 8 + 5) * size
    assert sum(seen.by("engine", "device_engine_bytes_total").values()) == (stored + 8 + 8 + 5) * size
    loads = seen.by("outcome", "tier_blocks_total", tier="fs", direction="load")
    assert loads["corrupt"] == 1
    assert seen("tier_bytes_total", tier="fs", direction="load") == loads["done"] * size
    stores = seen.by("outcome", "tier_blocks_total", tier="fs", direction="store")
    assert seen("tier_bytes_total", tier="fs", direction="store") == stores["done"] * size
    assert seen("tier_misses_total", tier="fs", reason="corrupt") == 1
    assert seen("tier_misses_total", tier="fs", reason="missing") == stats.tiers["fs"]["refused_missing"] > 0

    assert seen("tier_removed_blocks_total", tier="fs") == 1
    on_disk = seen("tier_appeared_blocks_total", tier="fs") - 1
    assert seen("tier_resident_blocks", tier="fs") == on_disk == len(glob(f"{tmp_path}/**/*.bin", recursive=True))
    assert seen("tier_evicted_blocks_total", tier="CPU") == stats.primary.evicted > 0
    assert seen("tier_removed_blocks_total", tier="CPU") == stats.primary.evicted
    assert seen("tier_appeared_blocks_total", tier="CPU") == stats.primary.stored
    assert seen("lost_blocks_total") == 0
    assert seen.by("state", "slots") == {"ready": 8}
    assert seen("tier_queue_wait_seconds_count", tier="fs", priority="demand") > 0
    assert seen("tier_queue_wait_seconds_count", tier="fs", priority="cascade") > 0


async def test_what_is_shed_and_by_which_bound(tmp_path: Path) -> None:
    device = Device(32)
    size = device.block_bytes
    pool = DualQueueThreadPool(1, 1, max_queued_bytes=100)
    fs_tiers: list[FileSystemTierManager] = []

    def fs_tier(layout: KVLayout, view: memoryview) -> FileSystemTierManager:
        fs_tiers.append(FileSystemTierManager(layout, view, "fs", tmp_path, pool=pool))
        return fs_tiers[0]

    plan = settings(device, 16, cascade_blocks=4)
    keys = keys_of("shed", 6)
    async with (
        Offloader(plan, kv_caches=device.kv_caches, tiers=[fs_tier]) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        busy = [Gate(), Gate()]
        for number, gate in enumerate(busy):
            pool.enqueue_load(number, 1, [gate])
            await gate.reached.wait()
        waiting = pool.enqueue_store(2, 3, [int] * 3, nbytes=100, priority=Priority.HOUSEKEEPING)
        await offloader.store(keys, range(6))
        while (await Scrape.of(server.url))("tier_calls_in_flight", tier="fs", call="store"):
            await turns()
        seen = await Scrape.of(server.url)
        shed = seen.by("bound", "tier_shed_blocks_total", tier="fs")
        assert shed["cascade_blocks"] == 2
        assert shed["max_queued_bytes"] >= 4
        assert shed["max_queued_bytes"] == seen("tier_blocks_total", tier="fs", direction="store", outcome="shed")
        assert seen.by("priority", "tier_queued_blocks", tier="fs") == {"housekeeping": 3}
        assert seen("tier_queue_age_seconds", tier="fs", priority="housekeeping") > 0
        assert seen.by("direction", "tier_queued_bytes", tier="fs") == {"store": 100}
        for gate in busy:
            gate.opened.set()
        await waiting.wait()
        async with offloader._manager.loading(keys):
            more = keys_of("more", 16)
            late = RequestContext(deadline=time.monotonic())
            assert (await offloader.store(more, range(16), late)).shed == 16
        seen = await Scrape.of(server.url)
        assert seen("tier_shed_blocks_total", tier="CPU", bound="host_bytes") == 16
        assert seen("store_blocks_total", result="shed") == 16
        assert seen("refused_writes_total") > 0
        assert seen("tier_bytes_total", tier="CPU", direction="store") == 6 * size
    await pool.aclose()


async def test_a_directory_with_a_quota(tmp_path: Path) -> None:
    device = Device(64, shape=(4096,))
    plan = settings(device, 64, tiers=[{"type": "fs", "root_dir": tmp_path, "quota": "200KiB"}])
    async with (
        Offloader(plan, kv_caches=device.kv_caches) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        for start in range(0, 64, 8):
            await offloader.store(keys_of("quota", 64)[start : start + 8], range(start, start + 8))
            await offloader.settle()
        while True:  # files are evicted in the background, and events of that come with the next call
            await offloader.lookup(keys_of("nowhere", 1))
            seen = await Scrape.of(server.url)
            if seen("tier_removed_blocks_total", tier="fs") and seen("tier_evicted_blocks_total", tier="fs"):
                break
    assert 0 < seen("tier_used_bytes", tier="fs") <= seen("tier_capacity_bytes", tier="fs") == 200 << 10
    assert seen("tier_shed_blocks_total", tier="fs", bound="quota") > 0
    assert seen("tier_shed_blocks_total", tier="fs", bound="space") == 0
    assert seen("tier_stat", tier="fs", name="counted") == 1


async def test_what_is_under_way() -> None:
    device, gate, kept = Device(16), CopyGate(), Kept()
    keys = keys_of("under way", 4)
    async with (
        Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler, tiers=[kept]) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        with kept.tier.before.store.shut():
            with gate.shut():
                storing = asyncio.create_task(offloader.store(keys, range(4)))
                await gate.arrived.acquire()
                seen = await Scrape.of(server.url)
                assert seen.by("call", "calls_in_flight") == {"store": 1}
                assert seen.by("direction", "device_copies_in_flight") == {"store": 1}
                assert seen.by("state", "slots") == {"writing": 4, "free": 4}
            await storing
            await kept.tier.before.store.reached()
            seen = await Scrape.of(server.url)
            assert seen.by("call", "tier_calls_in_flight") == {"store": 1}
            assert seen.by("tier", "tier_cascading_blocks") == {"gated": 4}
            assert (seen("pinned_slots"), seen("slots", state="ready")) == (4, 4)
            await offloader._manager.reset()
            seen = await Scrape.of(server.url)
            assert seen.by("state", "slots") == {"doomed": 4, "free": 4}
        await offloader.settle()
        with kept.tier.faults.raises("lookup", OSError(errno.EIO, "the test broke this tier")):
            assert await offloader.lookup(keys_of("broken", 2)) == 0
        gate.failing = {"store"}
        failing = asyncio.gather(offloader.store(keys_of("failing", 2), range(2)), return_exceptions=True)
        await failing
        seen = await Scrape.of(server.url)
        assert seen.by("call", "tier_call_errors_total") == {"lookup": 1}
        assert seen.by("direction", "device_copies_failed_total") == {"store": 1}
        assert seen.by("result", "calls_total", call="store") == {"ok": 1, "failed": 1}
        assert not seen.by("call", "calls_in_flight")


async def test_what_leaves_the_primary_and_is_nowhere_else() -> None:
    device, kept = Device(8), Kept()
    async with (
        Offloader(settings(device, 4, store_threshold=2), kv_caches=device.kv_caches, tiers=[kept]) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        kept.tier.faults.answers("store", Status.FAILED)
        for keys in (keys_of("one", 4), keys_of("two", 4)):
            for _ in range(2):
                await offloader.store(keys, range(4))
                await offloader.settle()
        seen = await Scrape.of(server.url)
    assert (seen("lost_blocks_total"), seen("tier_evicted_blocks_total", tier="CPU")) == (4, 4)
    assert seen("deferred_blocks_total") == 8
    assert seen("tier_blocks_total", tier="gated", direction="store", outcome="failed") >= 8
    assert seen("tier_used_bytes", tier="CPU") == seen("tier_capacity_bytes", tier="CPU") == 4 * device.block_bytes


async def test_two_groups_of_different_sizes() -> None:
    device, kept = Device(8, groups=(3, 1)), Kept()
    keys = keys_of("groups", 6, groups=2)
    async with (
        Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader,
        serve_metrics(offloader, 0) as server,
    ):
        await only_in_tiers(offloader, device, keys)
        await offloader.load(keys, range(6))
        seen = await Scrape.of(server.url)
    nbytes = 3 * device.page_bytes * 3 + 3 * device.page_bytes
    for tier in ("CPU", "gated"):
        assert seen.by("direction", "tier_bytes_total", tier=tier) == {"load": nbytes, "store": nbytes}
