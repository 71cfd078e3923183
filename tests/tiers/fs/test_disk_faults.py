"""Whatever happens to the files: never wrong bytes, never a hang, one clear outcome per key."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path, directory_name, fingerprint
from asyncoffload.errors import TierIOError, TransferTimeout
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyDisk, Refused, Slots, small_layout, some_keys
from asyncoffload.tiers.fs.blockfile import BlockFiles, make_block_files
from asyncoffload.tiers.fs.format import BlockFormat, checksum
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.space import MakeFiles
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.types import JobResult, LookupResult, Status

LAYOUT = small_layout()
KEYS = some_keys(LAYOUT, 6)
BAD, TWIN, GOOD = KEYS[0], KEYS[2], KEYS[1]  # the first two are of the same group


def make_tier(root: Path, slots: Slots, make_files: MakeFiles = make_block_files) -> FileSystemTierManager:
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, make_files=make_files)


def file_of(root: Path, key: OffloadKey) -> Path:
    return Path(block_path(str(root / directory_name(LAYOUT)), key))


def temporary_files(root: Path) -> list[Path]:
    return list(root.rglob("*.tmp"))


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    other = Path(block_path(str(path.parents[1]), TWIN))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def from_elsewhere(path: Path, *, model: str = LAYOUT.model, rank: int = 0) -> None:
    """The same block, as a process with another model or rank has it."""
    other = BlockFormat(fingerprint(replace(LAYOUT, model=model)), rank)
    header, payload = other.header(BAD, LAYOUT.group_bytes(0)), bytes(LAYOUT.group_bytes(0))
    path.write_bytes(header + checksum(header, [memoryview(payload)]) + payload)


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"truncated to {size}": partial(truncate, size=size) for size in (0, 10, 4095, 4096, 8192, -1)},
    **{f"header flipped at {at}": partial(flip, offset=at) for at in (0, 8, 10, 12, 16, 32, 40, 60, 108, 4087, 4088)},
    **{f"payload flipped at {at}": partial(flip, offset=at) for at in (4096, 8000, -1)},
    "zero-filled": zero,
    "swapped with another key's": swap,
    "from another model": partial(from_elsewhere, model="other"),
    "from another rank": partial(from_elsewhere, rank=1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_bad_block_is_a_miss_put_aside_and_counted(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    slots = Slots(LAYOUT, 8)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job([BAD, TWIN, GOOD]))
        tier.take_events()
        path = file_of(tmp_path, BAD)
        damage(path)
        result = await tier.load(slots.load_job([BAD, GOOD]))
        assert statuses(result) == [Status.CORRUPT, Status.DONE]
        assert slots.hold(1, GOOD)
        assert not path.exists()
        assert path.with_name(path.name + ".bad").exists()
        assert tier.stats()["load_corrupt"] == 1
        assert [(list(event.keys), event.removed) for event in tier.take_events()] == [([BAD], True)]
        assert list(await tier.lookup([BAD, GOOD])) == [LookupResult.MISS, LookupResult.HIT]
        assert statuses(await tier.store(slots.store_job([BAD]))) == [Status.DONE]
        assert statuses(await tier.load(slots.load_job([BAD]))) == [Status.DONE]
        assert slots.hold(0, BAD)


async def test_a_flipped_bit_of_the_padding_is_seen(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 8)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job([GOOD]))
        flip(file_of(tmp_path, GOOD), -1)
        assert statuses(await tier.load(slots.load_job([GOOD]))) == [Status.CORRUPT]


async def test_a_file_that_vanishes_during_the_read(tmp_path: Path) -> None:
    def unlink_first(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        file_of(tmp_path, BAD).unlink(missing_ok=True)
        return os.preadv(fd, buffers, offset)

    await _bad_read(tmp_path, unlink_first, {Status.DONE})


async def test_a_file_that_is_truncated_during_the_read(tmp_path: Path) -> None:
    def truncate_first(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        truncate(Path(f"/proc/self/fd/{fd}"), 5000)
        return os.preadv(fd, buffers, offset)

    await _bad_read(tmp_path, truncate_first, {Status.CORRUPT})


async def _bad_read(
    root: Path, preadv: Callable[[int, Sequence[memoryview], int], int], allowed: set[Status]
) -> JobResult:
    """Store a block, load it through a bad ``preadv``, and see an allowed outcome, without wrong bytes."""
    slots = Slots(LAYOUT, 8)
    async with make_tier(root, slots) as tier:
        await tier.store(slots.store_job([BAD]))

    def make_files(block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, calls=SystemCalls(preadv=preadv))

    async with make_tier(root, slots, make_files) as tier:
        result = await tier.load(slots.load_job([BAD]))
        assert set(statuses(result)) <= allowed
        assert slots.hold(0, BAD) or not result.success
        return result


@pytest.mark.parametrize("nth", range(1, 7))
async def test_an_error_on_the_nth_call_hits_one_key_only(tmp_path: Path, nth: int) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    disk.add("write", Refused(errno.EIO), calls=[nth])
    disk.add("read", Refused(errno.EIO), calls=[nth])
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        for verb, job in ((tier.store, slots.store_job), (tier.load, slots.load_job)):
            result = await verb(job(KEYS))
            failed = [outcome for outcome in result.outcomes if not outcome.ok]
            assert [outcome.status for outcome in failed] == [Status.FAILED]
            assert isinstance(failed[0].error, TierIOError)
            assert failed[0].error.errno == errno.EIO
            assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 6
        assert not temporary_files(tmp_path)
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 6
        assert slots.have(KEYS)


async def test_a_read_that_times_out_is_told_apart(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 8), FaultyDisk()
    disk.add("read", Refused(errno.ETIMEDOUT), keys=[BAD])
    async with make_tier(tmp_path, slots, disk.make_files) as tier:
        await tier.store(slots.store_job([BAD, GOOD]))
        result = await tier.load(slots.load_job([BAD, GOOD]))
        assert statuses(result) == [Status.TIMED_OUT, Status.DONE]
        assert isinstance(result.outcomes[0].error, TransferTimeout)


async def test_outcomes_do_not_keep_the_slots_alive(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 8)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(KEYS))
        flip(file_of(tmp_path, BAD), 5000)
        shutil.rmtree(file_of(tmp_path, TWIN).parent)
        file_of(tmp_path, TWIN).parent.touch()
        result = await tier.load(slots.load_job(KEYS))
        assert Status.CORRUPT in statuses(result)
        assert Status.FAILED in statuses(result)
    slots.view.release()
    slots._memory.close()


async def test_the_directory_is_removed_and_made_again(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 8)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(KEYS[:3]))
        shutil.rmtree(tmp_path / directory_name(LAYOUT))
        assert statuses(await tier.load(slots.load_job(KEYS[:2]))) == [Status.MISSING] * 2
        result = await tier.store(slots.store_job(KEYS[3:]))
        assert statuses(result) == [Status.FAILED] * 3
        assert isinstance(result.outcomes[0].error, TierIOError)
        assert result.outcomes[0].error.errno == errno.ENOENT
        removed = {key for event in tier.take_events() if event.removed for key in event.keys}
        assert removed == set(KEYS[:3])
        assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 6
        assert statuses(await tier.load(slots.load_job(KEYS))) == [Status.DONE] * 6
        assert (tmp_path / directory_name(LAYOUT) / "config.json").exists()


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    """Something mounted at a directory, or the test skipped."""
    try:
        subprocess.run(["mount", *arguments, str(target)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not permitted here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def remount_read_only(target: Path) -> None:
    """Make a bind mount read-only, or skip the test."""
    if subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], capture_output=True).returncode:
        pytest.skip("remounting is not permitted here")


async def test_a_full_disk_fails_stores_and_serves_loads(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 64)
    keys = some_keys(LAYOUT, 64)
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        async with make_tier(tmp_path, slots) as tier:
            result = await tier.store(slots.store_job(keys))
            full = [outcome.error for outcome in result.outcomes if not outcome.ok]
            assert full
            assert {error.errno for error in full if isinstance(error, TierIOError)} == {errno.ENOSPC}
            assert not temporary_files(tmp_path)
            kept = result.successful_keys
            assert kept
            assert statuses(await tier.load(slots.load_job(kept))) == [Status.DONE] * len(kept)
            assert slots.have(kept)
            assert set(await tier.lookup(result.failed_keys)) == {LookupResult.MISS}


async def test_a_disk_that_became_read_only_serves_loads(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 8)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(KEYS[:3]))
        with mounted(tmp_path, "--bind", str(tmp_path)):
            remount_read_only(tmp_path)
            result = await tier.store(slots.store_job(KEYS))
            assert statuses(result) == [Status.DONE] * 3 + [Status.FAILED] * 3
            assert isinstance(result.outcomes[3].error, TierIOError)
            assert result.outcomes[3].error.errno == errno.EROFS
            assert statuses(await tier.load(slots.load_job(KEYS[:3]))) == [Status.DONE] * 3
        assert statuses(await tier.store(slots.store_job(KEYS))) == [Status.DONE] * 6


@pytest.mark.parametrize("bounds", [{"quota": 1 << 30}, {"min_free": 0}, {"min_free": 40_000}], ids=str)
async def test_a_bounded_tier_goes_on_on_a_full_disk(tmp_path: Path, bounds: dict[str, int]) -> None:
    slots = Slots(LAYOUT, 16)
    keys = some_keys(LAYOUT, 128)
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, **bounds)  # type: ignore[arg-type]
        async with tier:
            for begin in range(0, len(keys), 16):
                left = keys[begin : begin + 16]
                while left:
                    result = await tier.store(slots.store_job(left))
                    assert set(statuses(result)) <= {Status.DONE, Status.SHED}
                    left = result.failed_keys
                    await asyncio.sleep(0.001)
            assert tier.stats()["evicted_files"] > 0
            assert not temporary_files(tmp_path)
            assert statuses(await tier.load(slots.load_job(keys[-16:]))) == [Status.DONE] * 16
            assert slots.have(keys[-16:])
            with suppress(OSError):  # it takes all that is left, and does not get enough
                (tmp_path / "somebody else's").write_bytes(bytes(1 << 20))
            result = await tier.store(slots.store_job(keys[:4]))
            assert set(statuses(result)) <= {Status.DONE, Status.SHED}


async def test_a_disk_that_others_have_filled_is_said_to_be_full(tmp_path: Path) -> None:
    def full(fd: int, buffers: Sequence[memoryview], offset: int) -> int:  # noqa: ARG001
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make_files(block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, calls=SystemCalls(pwritev=full))

    slots = Slots(LAYOUT, 8)
    async with FileSystemTierManager(
        LAYOUT, slots.view, "fs", tmp_path, 2, 2, quota=1 << 30, make_files=make_files
    ) as tier:
        result = await tier.store(slots.store_job(KEYS[:2]))
        assert statuses(result) == [Status.FAILED] * 2, "there is nothing to evict: offering it again is of no use"
        assert tier.stats()["reserved_bytes"] >= 0
        assert tier.stats()["used_bytes"] == 0
