"""Processes on one root of which not all have bounds, or not all are well."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.tiers.fs import housekeeping
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import Status
from tests.tiers.fs.test_bounds import (
    BLOCK,
    LAYOUT,
    bytes_below,
    count_all,
    find,
    make_tier,
    statuses,
    store_all,
    until,
)


async def join(root: Path, quota: int | None = None) -> Usage:
    """Another process, as far as the account goes."""
    return await asyncio.to_thread(Usage, str(root), is_empty=lambda: True, quota=quota)


async def test_a_neighbour_without_bounds_keeps_those_of_the_root(tmp_path: Path) -> None:
    slots, theirs, quota = Slots(LAYOUT, 16), Slots(LAYOUT, 16), 40 * BLOCK
    async with make_tier(tmp_path, theirs) as neighbour:
        await store_all(neighbour, theirs, some_keys(LAYOUT, 8, "before"))
        assert "used_bytes" not in neighbour.stats()
        async with make_tier(tmp_path, slots, quota) as tier:
            for number in range(6):
                await store_all(neighbour, theirs, some_keys(LAYOUT, 16, number))
                assert bytes_below(tmp_path) <= quota
            assert neighbour.stats()["quota_bytes"] == quota
            await until(lambda: not tier.stats()["reserved_bytes"])
            assert tier.stats()["used_bytes"] == bytes_below(tmp_path)
        await store_all(neighbour, theirs, some_keys(LAYOUT, 48, "after"))
        assert bytes_below(tmp_path) >= 48 * BLOCK
        assert "used_bytes" not in neighbour.stats()
    nbytes = bytes_below(tmp_path)
    assert await asyncio.to_thread(count_all, tmp_path) == nbytes


async def test_who_has_no_bounds_takes_over_from_who_died(tmp_path: Path) -> None:
    slots, quota = Slots(LAYOUT, 16), 40 * BLOCK
    dead, living = await join(tmp_path, quota), await join(tmp_path, quota)
    assert dead.take_housekeeping()
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, some_keys(LAYOUT, 32))
        dead.abandon()
        await store_all(tier, slots, some_keys(LAYOUT, 32, "more"))
        assert tier.stats()["evicted_files"] >= 24
        assert bytes_below(tmp_path) <= quota
    await asyncio.to_thread(living.leave)


async def test_a_process_that_keeps_house_and_was_stopped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "STOPPED_SECONDS", 0.0)
    slots, stopped = Slots(LAYOUT, 16), await join(tmp_path)
    assert stopped.take_housekeeping()
    async with make_tier(tmp_path, slots, 4 * BLOCK) as tier:
        result = statuses(await tier.store(slots.store_job(some_keys(LAYOUT, 16))))
        assert Status.SHED in result
        await until(lambda: bool(caplog.messages))
    assert f"stores find no room, and process {os.getpid()}, which keeps house there, has not looked" in caplog.text
    await asyncio.to_thread(stopped.leave)


async def test_an_account_that_somebody_keeps_locked_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots, stopped = Slots(LAYOUT, 16), await join(tmp_path)
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:
        await store_all(tier, slots, some_keys(LAYOUT, 4))
        with stopped.locked():
            await until(lambda: bool(caplog.messages))
            assert (await tier.load(slots.load_job(some_keys(LAYOUT, 4)))).success
        await store_all(tier, slots, some_keys(LAYOUT, 60, "more"))
    assert f"{tmp_path}: another process has held the account of the root for long" in caplog.text
    await asyncio.to_thread(stopped.leave)


class FewInodes:
    """A disk on which there is room for so many files of blocks only, whatever their length."""

    def __init__(self, root: Path, files: int) -> None:
        self._root = root
        self._files = files
        self._lock = threading.Lock()

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, calls=SystemCalls(open_file=self._open))

    def _open(self, path: str, flags: int, mode: int) -> int:
        with self._lock:
            if flags & os.O_CREAT and len(find(self._root, "*_g*/*")) >= self._files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return os.open(path, flags, mode)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_disk_that_is_full_of_files_makes_room(tmp_path: Path, alone: bool) -> None:
    slots, theirs, disk = Slots(LAYOUT, 16), Slots(LAYOUT, 16), FewInodes(tmp_path, 50)
    async with make_tier(tmp_path, slots, 1 << 30, make_files=disk.make_files) as keeper:
        keeping = keeper._residence._housekeeping
        assert keeping is not None
        await until(lambda: keeping.is_ours)
        async with make_tier(tmp_path, theirs, make_files=disk.make_files) as neighbour:
            storing = keeper if alone else neighbour
            for number in range(10):
                await store_all(storing, theirs if storing is neighbour else slots, some_keys(LAYOUT, 16, number))
            assert keeper.stats()["evicted_files"] >= 110
            assert storing.stats()["shed_by_space"] >= 1
            assert len(find(tmp_path, "*.bin")) >= 40
