"""With ``durability="fsync"``, a store is DONE when its block is durable; many are made so together."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.errors import ConfigError, TierIOError
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.testing import FaultyDisk, Refused, Slots, small_layout, some_keys
from asyncoffload.testing.faulty_disk import DiskCall
from asyncoffload.tiers.fs.blockfile import BlockFiles, make_block_files
from asyncoffload.tiers.fs.format import BlockFormat, file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.space import MakeFiles
from asyncoffload.tiers.fs.syncing import MAX_OPEN
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.types import JobResult, LookupResult, Status

LAYOUT = small_layout()
KEYS = some_keys(LAYOUT, 64)


def make_tier(
    root: Path, slots: Slots, make_files: MakeFiles = make_block_files, **options: object
) -> FileSystemTierManager:
    options = {"durability": "fsync", **options}
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, make_files=make_files, **options)  # type: ignore[arg-type]


def file_of(root: Path, key: OffloadKey) -> Path:
    return Path(block_path(str(root / directory_name(LAYOUT)), key))


def files_below(root: Path) -> list[Path]:
    return list(root.rglob("*_g*/*"))


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


class CountedCalls:
    """The operating system's calls, counted."""

    def __init__(self, **others: Callable[..., Any]) -> None:
        self.counts: Counter[str] = Counter()
        system = SystemCalls(**others)
        names = [field.name for field in fields(SystemCalls)]
        self.calls = SystemCalls(**{name: self._counted(name, getattr(system, name)) for name in names})

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, calls=self.calls)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: object) -> Any:
            self.counts[name] += 1
            return call(*arguments)

        return counted


async def test_blocks_come_back(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 64)
    async with make_tier(tmp_path, slots) as tier:
        (await tier.store(slots.store_job(KEYS))).raise_for_failures()
        (await tier.load(slots.load_job(KEYS))).raise_for_failures()
        assert slots.have(KEYS)
        assert tier.stats()["store_done"] == 64
    async with make_tier(tmp_path, slots, durability="none") as tier:
        (await tier.load(slots.load_job(KEYS))).raise_for_failures()


async def test_by_default_nothing_is_synced(tmp_path: Path) -> None:
    slots, system = Slots(LAYOUT, 64), CountedCalls()
    async with make_tier(tmp_path, slots, system.make_files, durability="none") as tier:
        (await tier.store(slots.store_job(KEYS))).raise_for_failures()
    assert system.counts["pwritev"] == 64
    assert not {name for name in system.counts if "sync" in name}


@pytest.mark.parametrize("whole", [False, True])
async def test_what_comes_during_a_sync_is_synced_together(tmp_path: Path, whole: bool) -> None:
    # All names in two directories.
    keys = [OffloadKey(b"\x07" + key[1:]) for key in KEYS]
    slots, disk = Slots(LAYOUT, 64), FaultyDisk()
    system = CountedCalls(sync_file=disk._sync_file, may_sync_whole=lambda path: whole)  # noqa: ARG005
    async with make_tier(tmp_path, slots, system.make_files) as tier:
        system.counts.clear()
        with disk.gates["sync"].shut():
            first = asyncio.create_task(tier.store(slots.store_job(keys[:1])))
            await disk.gates["sync"].reached()
            second = asyncio.create_task(tier.store(slots.store_job(keys[1:], 1)))
            while system.counts["pwritev"] < 64:  # noqa: ASYNC110 (the gate is not for writes)
                await asyncio.sleep(0)
        assert statuses(await first) == [Status.DONE]
        assert statuses(await second) == [Status.DONE] * 63
    if whole:
        assert 1 <= system.counts["sync_whole"] <= 3
        assert system.counts["sync_directory"] <= 6
    else:
        assert system.counts["sync_file"] == 64
        assert system.counts["sync_directory"] <= 3 * 3


async def test_a_store_waits_for_the_bytes_and_then_for_the_name(tmp_path: Path) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        with disk.gates["sync_directory"].shut():
            with disk.gates["sync"].shut():
                storing = asyncio.create_task(tier.store(slots.store_job([key])))
                await disk.gates["sync"].reached()
                assert not file_of(tmp_path, key).exists()
            await disk.gates["sync_directory"].reached()
            assert file_of(tmp_path, key).exists()
            assert not tier.hint(key)
            assert not storing.done()
        assert statuses(await storing) == [Status.DONE]
        assert tier.hint(key)


async def test_loads_do_not_wait_for_syncs(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 64), FaultyDisk()
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        await tier.store(slots.store_job(KEYS[:4]))
        with disk.gates["sync"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job(KEYS[4:], 4)))
            await disk.gates["sync"].reached()
            (await tier.load(slots.load_job(KEYS[:4]))).raise_for_failures()
            assert slots.have(KEYS[:4])
            assert not storing.done()
        (await storing).raise_for_failures()


@pytest.mark.parametrize("call", ["sync", "sync_directory"])
@pytest.mark.parametrize("quota", [None, 1 << 30])
async def test_a_failing_sync_fails_the_store_and_leaves_nothing(
    tmp_path: Path, call: DiskCall, quota: int | None
) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    async with make_tier(tmp_path, slots, disk.make_files, quota=quota) as tier:
        with disk.add(call, Refused(errno.EIO), times=1):
            result = await tier.store(slots.store_job([key]))
        assert statuses(result) == [Status.FAILED]
        assert isinstance(result.outcomes[0].error, TierIOError)
        assert result.outcomes[0].error.errno == errno.EIO
        assert os.listdir(file_of(tmp_path, key).parent) == []
        assert not tier.hint(key)
        assert tier.stats().get("used_bytes", 0) == 0
        assert statuses(await tier.load(slots.load_job([key]))) == [Status.MISSING]
        assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
        assert statuses(await tier.load(slots.load_job([key]))) == [Status.DONE]
        assert quota is None or tier.stats()["used_bytes"] == file_of(tmp_path, key).stat().st_size


async def test_one_failing_sync_hits_one_key_only(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 64), FaultyDisk()
    disk.add("sync", Refused(errno.EIO), keys=KEYS[:1])
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        result = await tier.store(slots.store_job(KEYS))
        assert statuses(result) == [Status.FAILED, *[Status.DONE] * 63]


@pytest.mark.parametrize(("number", "status"), [(errno.EIO, Status.FAILED), (errno.ENOSPC, Status.DONE)])
async def test_a_failing_sync_of_everything_fails_all_unless_it_may_be_about_others(
    tmp_path: Path, number: int, status: Status
) -> None:
    def refuse(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    slots = Slots(LAYOUT, 64)
    system = CountedCalls(sync_whole=refuse, may_sync_whole=lambda path: True)  # noqa: ARG005
    async with make_tier(tmp_path, slots, system.make_files) as tier:
        result = await tier.store(slots.store_job(KEYS))
        while not system.counts["sync_whole"]:  # how many are synced together is chance
            result = await tier.store(slots.store_job(KEYS))
        assert status in statuses(result)
        assert set(statuses(result)) <= {status, Status.DONE}
        assert {key for key in KEYS if file_of(tmp_path, key).exists()} == set(result.successful_keys)


async def test_a_lookup_during_a_store_that_fails_is_not_believed(tmp_path: Path) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        disk.add("sync_directory", Refused(errno.EIO), times=1)
        with disk.gates["sync_directory"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job([key])))
            await disk.gates["sync_directory"].reached()
            assert list(await tier.lookup([key])) == [LookupResult.HIT]
        assert statuses(await storing) == [Status.FAILED]
        assert not tier.hint(key)
        assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
        assert file_of(tmp_path, key).exists()


async def test_a_disk_that_is_full_when_it_syncs(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        with disk.add("sync", Refused(errno.ENOSPC), keys=KEYS[:1]):
            result = await tier.store(slots.store_job(KEYS[:2]))
        assert statuses(result) == [Status.FAILED, Status.DONE]
    async with make_tier(tmp_path, slots, disk.make_files, quota=1 << 30) as tier:
        while not tier.stats()["counted"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        used = tier.stats()["used_bytes"]
        with disk.add("sync", Refused(errno.ENOSPC), keys=KEYS[2:3]):
            assert statuses(await tier.store(slots.store_job(KEYS[2:4]))) == [Status.SHED, Status.DONE]
        assert tier.stats()["shed_by_space"] == 1
        await tier.scanned()
        assert tier.stats()["used_bytes"] <= used + file_bytes(LAYOUT.group_bytes(1))


async def test_a_block_that_is_there_is_made_durable_too(tmp_path: Path) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    async with make_tier(tmp_path, slots, durability="none") as neighbour:
        await neighbour.store(slots.store_job([key]))
    system = CountedCalls(sync_file=disk._sync_file, may_sync_whole=lambda path: False)  # noqa: ARG005
    async with make_tier(tmp_path, slots, system.make_files) as tier:
        assert list(await tier.lookup([key])) == [LookupResult.HIT]
        system.counts.clear()
        assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
        assert system.counts["sync_file"] == 1
        assert system.counts["sync_directory"] == 2
        assert not system.counts["pwritev"]
        with disk.add("sync", Refused(errno.EIO)):
            assert statuses(await tier.store(slots.store_job([key]))) == [Status.FAILED]
        assert not file_of(tmp_path, key).exists(), "it must not pass for clean the next time"
        assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
        assert dict(system.counts)["pwritev"] == 1
        file_of(tmp_path, key).unlink()
        assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
        assert file_of(tmp_path, key).exists()


async def test_a_block_that_is_there_and_torn_is_written_anew(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), [key for key in KEYS if not group_of(key)][:4]
    async with make_tier(tmp_path, slots, durability="none") as earlier:
        assert (await earlier.store(slots.store_job(keys))).success
    os.truncate(file_of(tmp_path, keys[0]), 0)
    for key, place in ((keys[1], 0), (keys[2], 4096)):
        with file_of(tmp_path, key).open("r+b") as file:
            file.seek(place)
            file.write(bytes(1024))
    async with make_tier(tmp_path, slots) as tier:
        await tier.scanned()
        assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE] * 4
        assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
        assert {path.stat().st_size for path in files_below(tmp_path)} == {file_bytes(LAYOUT.group_bytes(0))}


async def test_a_cancelled_store_is_settled_before_it_ends(tmp_path: Path) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        with disk.gates["sync"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job([key])))
            await disk.gates["sync"].reached()
            storing.cancel()
            await asyncio.sleep(0)
            assert not storing.done()
        await asyncio.wait([storing])
        assert storing.cancelled()
        assert tier.hint(key)


async def test_closing_waits_for_syncs(tmp_path: Path) -> None:
    slots, disk, key = Slots(LAYOUT, 4), FaultyDisk(), KEYS[0]
    tier = make_tier(tmp_path, slots, disk.make_files)
    with disk.gates["sync"].shut():
        storing = asyncio.create_task(tier.store(slots.store_job([key])))
        await disk.gates["sync"].reached()
        closing = asyncio.create_task(tier.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
    await closing
    assert statuses(await storing) == [Status.DONE]
    assert file_of(tmp_path, key).exists()


async def test_descriptors_are_few_however_many_files_wait(tmp_path: Path) -> None:
    keys, most = some_keys(LAYOUT, 4 * MAX_OPEN), 0
    slots, disk = Slots(LAYOUT, len(keys)), FaultyDisk()

    def open_and_look(path: str, flags: int, mode: int) -> int:
        nonlocal most
        fd = os.open(path, flags, mode)
        most = max(most, fd)
        return fd

    calls = SystemCalls(open_file=open_and_look, sync_file=disk._sync_file)
    before = len(os.listdir("/proc/self/fd"))

    def make_files(block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, calls=calls)

    async with make_tier(tmp_path, slots, make_files) as tier:
        with disk.gates["sync"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job(keys)))
            await disk.gates["sync"].reached(4)  # the one that leads, and the three that may store
        (await storing).raise_for_failures()
    assert most < before + 2 * MAX_OPEN + 100


@pytest.mark.virtual_time
@pytest.mark.parametrize("call", ["sync", "sync_directory"])
async def test_a_sync_that_hangs_is_not_waited_for(tmp_path: Path, call: DiskCall) -> None:
    slots, disk, clock = Slots(LAYOUT, 8), FaultyDisk(), asyncio.get_running_loop().time
    async with make_tier(tmp_path, slots, disk.make_files, quota=1 << 30, io_timeout=10, clock=clock) as tier:
        await tier.start()
        with disk.gates[call].shut():
            # A single block: then all threads that sync are held.
            storing = asyncio.create_task(tier.store(slots.store_job(KEYS[:1])))
            await disk.gates[call].reached()
            late = asyncio.create_task(tier.store(slots.store_job(KEYS[1:6], 1)))
            assert statuses(await storing) == [Status.TIMED_OUT]
            assert set(statuses(await late)) <= {Status.TIMED_OUT, Status.SHED}
            assert tier.stats()["hung_calls"] == 1
            while tier.stats()["paused"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # The file system answers again: others go on, and what comes too late is removed.
        (await tier.store(slots.store_job(KEYS[6:8], 6))).raise_for_failures()
        (await tier.load(slots.load_job(KEYS[6:8]))).raise_for_failures()
        while len(files_below(tmp_path)) > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (await tier.store(slots.store_job(KEYS[:6]))).raise_for_failures()
        while tier.stats()["used_bytes"] != sum(path.stat().st_size for path in files_below(tmp_path)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_file_system_that_does_not_sync_directories_is_refused(tmp_path: Path) -> None:
    def no_directories(path: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    system, slots = CountedCalls(sync_directory=no_directories), Slots(LAYOUT, 4)
    tier = make_tier(tmp_path, slots, system.make_files)
    with pytest.raises(ConfigError, match="use another root_dir, or durability='none'"):
        await tier.start()
    await tier.aclose()


async def test_the_directories_of_a_new_root_are_made_durable(tmp_path: Path) -> None:
    synced: list[str] = []
    system, slots = CountedCalls(sync_directory=synced.append), Slots(LAYOUT, 4)
    root = tmp_path / "new" / "root"
    async with make_tier(root, slots, system.make_files) as tier:
        await tier.start()
    assert set(synced) == {str(tmp_path), str(tmp_path / "new"), str(root), str(root / directory_name(LAYOUT))}
