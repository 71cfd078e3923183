"""Why was it a miss? Each reason is produced for real, over a real directory, and named."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asyncoffload import ANONYMOUS, ClosedError, FileSystemTierManager, InvalidArgument, Offloader, RequestContext
from asyncoffload.keys import OffloadKey, block_hash_of, make_key, scoped
from asyncoffload.offloader.offloader import TierFactory
from asyncoffload.testing import FaultyDisk
from asyncoffload.testing.faulty_disk import Refused
from asyncoffload.types import Explanation, Fate, Findings, KVLayout, Status
from tests.offloader.rig import CopyGate, Device, Kept, MemoryTier, keys_of, settings

PAGE = (4096,)


def files(root: Path, **options: object) -> dict[str, object]:
    return {"type": "fs", "root_dir": root, "io_threads": 2, **options}


def tier_of(root: Path, **options: object) -> TierFactory:
    """The same tier, with what settings cannot say."""

    def make(layout: KVLayout, view: memoryview) -> FileSystemTierManager:
        return FileSystemTierManager(layout, view, "fs", root, 2, 2, **options)  # type: ignore[arg-type]

    return make


def history(found: Explanation) -> list[tuple[str, Fate, str]]:
    return [(entry.tier, entry.what, entry.why) for entry in found.history]


def file_of(root: Path, key: OffloadKey) -> Path:
    (path,) = root.rglob(f"{block_hash_of(key).hex()}.bin")
    return path


async def store(offloader: Offloader, device: Device, keys: list[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
    device.fill(keys, range(len(keys)))
    await offloader.store(keys, range(len(keys)), ctx)


async def until(offloader: Offloader, key: OffloadKey, holds: Callable[[Explanation], object]) -> Explanation:
    """Ask until it is so: the housekeeping comes by itself."""
    while not holds(found := await offloader.explain(key)):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return found


async def fill_up(offloader: Offloader, device: Device, key: OffloadKey) -> Explanation:
    """Store other blocks until the file tier has evicted one."""
    for turn in range(10_000):
        await store(offloader, device, keys_of(f"more {turn}", 2))
        await offloader.settle()
        found = await offloader.explain(key)
        if ("fs", Fate.EVICTED) in [(entry.tier, entry.what) for entry in found.history]:
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("nothing was evicted")


async def test_where_it_is(tmp_path: Path) -> None:
    device, keys = Device(4, shape=PAGE), keys_of("here", 2)
    async with Offloader(settings(device, 4, tiers=[files(tmp_path)]), kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, keys)
        await offloader.settle()
        found = await offloader.explain(keys[1])
        assert found.key == keys[1]
        assert found.verdict == "in host memory: a load takes it from there; in 'fs' as well"
        assert set(found.where) == {"CPU", "fs"}
        assert found.where["CPU"] == "ready"
        assert found.where["fs"].startswith(f"{file_of(tmp_path, keys[1])}, {12_288:,} bytes, last used ")
        assert history(found) == [("CPU", Fate.STORED, ""), ("fs", Fate.STORED, "")]
        text = str(found)
        assert f"block {block_hash_of(keys[1]).hex()}, group 0: in host memory" in text
        assert "  now      CPU: ready" in text
        assert "  fs: stored" in text.splitlines()[-1]


async def test_evicted_from_host_memory_and_still_in_the_tier(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("old", 1)
    async with Offloader(settings(device, 4, tiers=[files(tmp_path)]), kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        await store(offloader, device, keys_of("new", 4))
        found = await offloader.explain(key)
        assert found.verdict.endswith("when a tier had a copy; in 'fs', from where a load brings it back")
        assert list(found.where) == ["fs"]
        assert history(found)[-1] == ("CPU", Fate.EVICTED, "")
        assert (await offloader.load([key], [0])).blocks == 1
        assert history(await offloader.explain(key))[-1] == ("CPU", Fate.PROMOTED, "from fs")


async def test_evicted_by_the_quota_and_known_after_a_restart(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("old", 1)
    plan = settings(device, 4, tiers=[files(tmp_path, quota=100 * 12_288)])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        found = await fill_up(offloader, device, key)
        assert found.where == {}
        assert "evicted from host memory" in found.verdict
        assert "'fs' evicted it" in found.verdict
        (why,) = [why for tier, what, why in history(found) if (tier, what) == ("fs", Fate.EVICTED)]
        assert why in ("quota", "recycled")
        assert "LEFT" not in str(found)
    async with Offloader(plan, kv_caches=device.kv_caches) as again:
        assert (await again.load([key], [0])).blocks == 0
        found = await again.explain(key)
        assert history(found) == [("fs", Fate.EVICTED, why)]
        assert found.verdict.startswith("'fs' evicted it")


async def test_evicted_since_the_disk_was_too_full(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("old", 1)
    room = [1 << 30]
    tier = tier_of(tmp_path, min_free=1 << 20, free=lambda _: room[0])
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[tier]) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        await store(offloader, device, keys_of("others", 4))
        await offloader.settle()
        room[0] = 1 << 19
        found = await until(offloader, key, lambda found: "evicted it" in found.verdict)
        assert ("fs", Fate.EVICTED, "min_free") in history(found)


async def test_shed_since_the_disk_is_too_full(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("shed", 1)
    tier = tier_of(tmp_path, min_free=1 << 20, free=lambda _: 1 << 19)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[tier]) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        assert ("fs", Fate.SHED, "min_free") in history(await offloader.explain(key))


async def test_corrupt(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("bad", 1)
    plan = settings(device, 1, tiers=[files(tmp_path)])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        await store(offloader, device, keys_of("other", 1))
        path = file_of(tmp_path, key)
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        await offloader.settle()
        assert (await offloader.load([key], [0])).stopped_by is Status.CORRUPT
        found = await offloader.explain(key)
        assert found.where == {}
        assert history(found)[-1] == ("fs", Fate.CORRUPT, "the checksum does not match")
        assert "'fs' found it corrupt a moment ago and set it aside (the checksum does not match)" in found.verdict
    async with Offloader(plan, kv_caches=device.kv_caches) as again:
        assert history(await again.explain(key)) == [("fs", Fate.CORRUPT, "")]
    (tmp_path / "departures").unlink()
    async with Offloader(plan, kv_caches=device.kv_caches) as again:  # the file in quarantine tells as well
        assert history(await again.explain(key)) == [("fs", Fate.CORRUPT, "")]


async def test_shed_by_the_bound_on_cascades(tmp_path: Path) -> None:
    device, keys = Device(4, shape=PAGE), keys_of("shed", 2)
    disk = FaultyDisk()
    plan = settings(device, 2, cascade_blocks=1)
    async with Offloader(
        plan, kv_caches=device.kv_caches, tiers=[tier_of(tmp_path, make_files=disk.make_files)]
    ) as offloader:
        with disk.gates["create"].shut():
            await store(offloader, device, keys)
            await disk.gates["create"].reached()
            await store(offloader, device, keys_of("other", 1))
            found = await offloader.explain(keys[1])
        assert found.where == {}
        assert history(found) == [
            ("CPU", Fate.STORED, ""),
            ("fs", Fate.SHED, "cascade_blocks"),
            ("CPU", Fate.LOST, ""),
        ]
        assert found.verdict == (
            "evicted from host memory a moment ago without a copy in any tier; 'fs' shed its copy a moment ago, "
            "because of the bound cascade_blocks"
        )


async def test_shed_by_the_queue_of_the_tier(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("shed", 1)
    disk = FaultyDisk()
    tier = tier_of(tmp_path, make_files=disk.make_files, max_queued_bytes=1)
    async with Offloader(settings(device, 16), kv_caches=device.kv_caches, tiers=[tier]) as offloader:
        with disk.gates["create"].shut():
            for other in keys_of("running", 8):  # as many as there are threads, and one waits
                await store(offloader, device, [other])
            await store(offloader, device, [key])
            found = await until(offloader, key, lambda found: ("fs", Fate.SHED, "max_queued_bytes") in history(found))
        assert found.where == {"CPU": "ready"}


async def test_shed_by_the_quota(tmp_path: Path) -> None:
    device, keys = Device(8, shape=PAGE), keys_of("shed", 4)
    plan = settings(device, 8, tiers=[files(tmp_path, quota=12_288)])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, keys)
        await offloader.settle()
        told = [history(await offloader.explain(key)) for key in keys]
        assert sum(("fs", Fate.SHED, "quota") in entries for entries in told) == 3


async def test_shed_by_a_full_disk_and_failed(tmp_path: Path) -> None:
    device, (full, broken) = Device(4, shape=PAGE), keys_of("trouble", 2)
    disk = FaultyDisk()
    disk.add("write", Refused(errno.ENOSPC), keys=[full])
    disk.add("write", Refused(errno.EIO), keys=[broken])
    tier = tier_of(tmp_path, make_files=disk.make_files, quota=1 << 30)
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[tier]) as offloader:
        await store(offloader, device, keys_of("there", 1))
        await offloader.settle()
        await store(offloader, device, [full, broken])
        await offloader.settle()
        assert ("fs", Fate.SHED, "space") in history(await offloader.explain(full))
        found = await offloader.explain(broken)
        (why,) = [why for tier, what, why in history(found) if (tier, what) == ("fs", Fate.FAILED)]
        assert os.strerror(errno.EIO) in why


async def test_another_fingerprint(tmp_path: Path) -> None:
    (key,) = keys_of("same", 1)
    for dtype in (torch.float16, torch.bfloat16):
        device = Device(4, shape=(2048,), dtype=dtype)
        plan = settings(device, 4, tiers=[files(tmp_path)])
        async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
            found = await offloader.explain(key)
            if dtype is torch.float16:
                assert found.verdict == "never offered to this process"
                await store(offloader, device, [key])
    assert found.verdict == (
        "never offered to this process; 'fs' holds the same hash under another fingerprint: "
        "dtype float16[2048] there, bfloat16[2048] here"
    )
    assert found.elsewhere["fs"] == [found.verdict.partition("holds ")[2]]
    assert found.where == {}
    assert "  beside   fs: the same hash under another fingerprint" in str(found)


async def test_another_rank_and_another_group(tmp_path: Path) -> None:
    hash_ = block_hash_of(keys_of("same", 1)[0])
    device = Device(4, groups=(1, 1), shape=PAGE)
    for rank in (1, 0):
        plan = settings(device, 4, rank=rank, parallel=[["tp", 2]], tiers=[files(tmp_path)])
        async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
            if rank:
                await store(offloader, device, [make_key(hash_, 1)])
                await offloader.settle()
                here = (await offloader.explain(make_key(hash_, 0))).elsewhere["fs"]
            else:
                there = (await offloader.explain(make_key(hash_, 1))).elsewhere["fs"]
    assert here == ["the same hash in another group: group 1 there, 0 here"]
    assert there == ["the same hash of another rank: rank 1 there, 0 here"]


async def test_never_offered(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("unknown", 1)
    async with Offloader(settings(device, 4, tiers=[files(tmp_path)]), kv_caches=device.kv_caches) as offloader:
        await offloader.load([key], [0])
        found = await offloader.explain(key)
        assert (found.where, list(found.history), dict(found.elsewhere)) == ({}, [], {})
        assert found.verdict == "never offered to this process"


async def test_removed_by_somebody_else(tmp_path: Path) -> None:
    device, (key,) = Device(4, shape=PAGE), keys_of("removed", 1)
    async with Offloader(settings(device, 1, tiers=[files(tmp_path)]), kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        await store(offloader, device, keys_of("other", 1))
        await offloader.settle()
        file_of(tmp_path, key).unlink()
        assert (await offloader.load([key], [0])).blocks == 0
        found = await offloader.explain(key)
        assert history(found)[-1] == ("fs", Fate.MISSING, "")
        assert "'fs' had lost it a moment ago: the file was removed by somebody else" in found.verdict


async def test_without_a_tier() -> None:
    device, (key, failed) = Device(4), keys_of("alone", 2)
    gate = CopyGate()
    async with Offloader(settings(device, 1), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        await store(offloader, device, [key])
        await store(offloader, device, keys_of("other", 1))
        found = await offloader.explain(key)
        assert found.verdict == "evicted from host memory a moment ago, and there is no tier behind it"
        gate.failing = {"store"}
        with pytest.raises(Exception, match="the test broke this copy"):
            await store(offloader, device, [failed])
        assert (await offloader.explain(failed)).verdict == "its copy from the device failed a moment ago"


async def test_being_written() -> None:
    device, (key,) = Device(4), keys_of("writing", 1)
    gate = CopyGate()
    async with Offloader(settings(device, 1), kv_caches=device.kv_caches, handler=gate.handler) as offloader:
        with gate.shut():
            storing = asyncio.create_task(store(offloader, device, [key]))
            await gate.arrived.acquire()
            found = await offloader.explain(key)
        await storing
        assert found.where == {"CPU": "writing"}
        assert found.verdict == "on its way into host memory: whoever loads it waits for that"


async def test_a_namespace_is_folded_in() -> None:
    device, (key,) = Device(4), keys_of("shared", 1)
    ctx = RequestContext(namespace="tenant")
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key], ctx)
        assert (await offloader.explain(key)).verdict == "never offered to this process"
        found = await offloader.explain(key, ctx)
        assert found.key == scoped("tenant", key)
        assert found.where == {"CPU": "ready"}


async def test_a_journal_that_is_off_or_short() -> None:
    device, (key, unknown) = Device(4), keys_of("forgotten", 2)
    async with Offloader(settings(device, 1, journal_blocks=0), kv_caches=device.kv_caches) as offloader:
        await store(offloader, device, [key])
        await store(offloader, device, keys_of("other", 1))
        assert (await offloader.explain(key)).verdict.startswith("nowhere, and nothing is remembered of it")
    async with Offloader(settings(device, 1, journal_blocks=1), kv_caches=device.kv_caches) as offloader:
        for number in range(6):
            await store(offloader, device, keys_of(number, 1))
        verdict = (await offloader.explain(unknown)).verdict
        assert verdict.startswith("nowhere, and not offered to this process since a moment ago")


class SilentTier(MemoryTier):
    """A tier that does not explain, or takes for ever."""

    hangs = False

    async def explain(self, key: OffloadKey) -> Findings:
        if self.hangs:
            await asyncio.Event().wait()
        raise OSError(errno.EIO, f"no word on {key.hex()}")


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_tier_that_does_not_answer(hangs: bool) -> None:
    device, (key,) = Device(4), keys_of("asked", 1)

    def silent(layout: KVLayout, view: memoryview) -> SilentTier:
        tier = SilentTier(layout, view, "silent")
        tier.hangs = hangs
        return tier

    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[silent, Kept()]) as offloader:
        found = await offloader.explain(key, RequestContext(deadline=0.0) if hangs else ANONYMOUS)
        assert "never offered to this process; 'silent' does not answer" in found.verdict


async def test_a_tier_that_explains_nothing_is_asked_what_it_holds() -> None:
    device, (key,), kept = Device(4), keys_of("plain", 1), Kept()
    async with Offloader(settings(device, 1), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await store(offloader, device, [key])
        await offloader.settle()
        await store(offloader, device, keys_of("other", 1))
        found = await offloader.explain(key)
        assert found.where == {"gated": "there"}
        none = await offloader.explain(key, RequestContext(tiers=frozenset()))
        assert none.where == {}
        with pytest.raises(InvalidArgument, match="there is no tier"):
            await offloader.explain(key, RequestContext(tiers=frozenset({"nowhere"})))


async def test_bad_calls() -> None:
    device = Device(4)
    offloader = Offloader(settings(device, 4), kv_caches=device.kv_caches)
    async with offloader:
        with pytest.raises(InvalidArgument):
            await offloader.explain("key")  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        await offloader.explain(keys_of("closed", 1)[0])


async def test_cancelled_it_leaves_at_once() -> None:
    device, (key,) = Device(4), keys_of("asked", 1)

    def silent(layout: KVLayout, view: memoryview) -> SilentTier:
        tier = SilentTier(layout, view, "silent")
        tier.hangs = True
        return tier

    async with Offloader(settings(device, 4), kv_caches=device.kv_caches, tiers=[silent]) as offloader:
        asking = asyncio.create_task(offloader.explain(key))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
