"""A file tier on a disk that fails, tears, falls short or dawdles: one clear outcome per key, never wrong bytes."""

from __future__ import annotations

import asyncio
import errno
from glob import glob
from pathlib import Path

import pytest

from asyncoffload.errors import InvalidArgument, TierIOError
from asyncoffload.testing import (
    Delayed,
    FaultyDisk,
    Flipped,
    Refused,
    Short,
    Slots,
    Torn,
    VirtualTimeLoop,
    small_layout,
    some_keys,
)
from asyncoffload.testing.faulty_disk import DiskCall, DiskFault
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import JobResult, Status

LAYOUT = small_layout()
KEYS = some_keys(LAYOUT, 6)
BAD = KEYS[2:3]


def make_tier(root: Path, slots: Slots, disk: FaultyDisk) -> FileSystemTierManager:
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, make_files=disk.make_files)


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


def with_bad(status: Status) -> list[Status]:
    expected = [Status.DONE] * 6
    expected[2] = status
    return expected


@pytest.mark.parametrize(
    ("call", "fault", "stored", "loaded"),
    [
        ("create", Refused(errno.ENOSPC), Status.FAILED, Status.MISSING),
        ("write", Refused(errno.ENOSPC), Status.FAILED, Status.MISSING),
        ("write", Short(0), Status.FAILED, Status.MISSING),
        ("write", Torn(4096), Status.DONE, Status.CORRUPT),
        ("write", Torn(), Status.DONE, Status.CORRUPT),
        ("open", Refused(errno.EACCES), Status.DONE, Status.FAILED),
        ("read", Refused(errno.EIO), Status.DONE, Status.FAILED),
        ("read", Refused(errno.ETIMEDOUT), Status.DONE, Status.TIMED_OUT),
        ("read", Short(), Status.DONE, Status.CORRUPT),
        ("read", Flipped(), Status.DONE, Status.CORRUPT),
        ("read", Flipped(8), Status.DONE, Status.CORRUPT),
    ],
)
@pytest.mark.parametrize("direct_io", ["auto", "off"])
async def test_a_fault_hits_its_key_only(
    tmp_path: Path, call: DiskCall, fault: DiskFault, stored: Status, loaded: Status, direct_io: str
) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    rule = disk.add(call, fault, keys=BAD)
    tier = FileSystemTierManager(
        LAYOUT,
        slots.view,
        "fs",
        tmp_path,
        2,
        2,
        make_files=disk.make_files,
        direct_io=direct_io,  # type: ignore[arg-type]
    )
    async with tier:
        result = await tier.store(slots.store_job(KEYS))
        assert statuses(result) == with_bad(stored)
        if isinstance(fault, Refused) and stored is Status.FAILED:
            error = result.outcomes[2].error
            assert isinstance(error, TierIOError)
            assert error.errno == fault.number
        result = await tier.load(slots.load_job(KEYS))
        assert statuses(result) == with_bad(loaded)
        assert all(slots.hold(slot, key) for slot, key in enumerate(KEYS) if key not in BAD)
        assert rule.hits >= 1
        disk.recover()
        await tier.store(slots.store_job(KEYS))
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 6
        assert slots.have(KEYS)
    assert not glob(f"{tmp_path}/**/*.tmp", recursive=True)


async def test_a_write_that_falls_short_once_is_finished(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    rule = disk.add("write", Short(4096), times=3)
    async with make_tier(tmp_path, slots, disk) as tier:
        assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 6
        assert rule.hits == 3
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 6
        assert slots.have(KEYS)


async def test_threads_are_held_in_their_calls(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    async with make_tier(tmp_path, slots, disk) as tier:
        with disk.gates["write"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job(KEYS)))
            path = await disk.gates["write"].arrival()
            assert path.endswith(".tmp")
            assert not storing.done()
        assert (await storing).success


@pytest.mark.virtual_time
async def test_delays_pass_in_virtual_time(tmp_path: Path) -> None:
    loop = VirtualTimeLoop.running()
    slots, disk = Slots(LAYOUT, 8), FaultyDisk(sleep=loop.block)
    disk.add("read", Delayed(600.0), keys=BAD)
    disk.add("read", Flipped(), keys=BAD)
    async with make_tier(tmp_path, slots, disk) as tier:
        await tier.store(slots.store_job(KEYS))
        assert loop.time() == 0.0
        assert statuses(await tier.load(slots.load_job(KEYS))) == with_bad(Status.CORRUPT)
        assert loop.time() == 600.0


@pytest.mark.parametrize(
    ("call", "fault", "complaint"),
    [
        ("wrte", Refused(errno.EIO), "no call 'wrte': choose one of open, create, read, write, sync, sync_directory"),
        ("read", Torn(), r"'read' cannot suffer Torn\(kept=0\): choose one of Refused, Delayed, Short, Flipped"),
        ("write", Flipped(), r"'write' cannot suffer Flipped\(at=4096\): choose one of Refused, Delayed, Short, Torn"),
        ("open", Short(), "one of Refused, Delayed$"),
        ("sync", Torn(), "one of Refused, Delayed$"),
        ("write", None, "'write' cannot suffer None"),
        ("write", Refused, "'write' cannot suffer <class"),
    ],
)
def test_a_fault_that_would_never_strike_is_refused(call: DiskCall, fault: DiskFault, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        FaultyDisk().add(call, fault)


def test_directories_have_no_keys() -> None:
    with pytest.raises(InvalidArgument, match="directories have no keys"):
        FaultyDisk().add("sync_directory", Refused(errno.EIO), keys=KEYS)
