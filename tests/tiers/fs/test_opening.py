"""What a tier finds when it opens its directory, and what it says about it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from asyncoffload.core.layout import directory_name
from asyncoffload.errors import ConfigError, TierUnavailable
from asyncoffload.testing.slots import Slots, small_layout, some_keys
from asyncoffload.tiers.fs import usage as usage_module
from asyncoffload.tiers.fs.directio import file_system_takes_direct_io, slots_are_aligned
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.space import DirectIO
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import LookupResult

LAYOUT = small_layout()


def make_tier(root: Path, slots: Slots, direct_io: DirectIO = "auto") -> FileSystemTierManager:
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, direct_io=direct_io)


async def test_config_says_in_clear_what_the_blocks_are(tmp_path: Path) -> None:
    async with make_tier(tmp_path, Slots(LAYOUT, 4)):
        config = tmp_path / directory_name(LAYOUT) / "config.json"
        said = json.loads(config.read_text())
        assert (said["model"], said["dtype"], said["block_size"], said["rank"]) == ("laws", "bfloat16", 16, 0)
        assert said["groups"] == [{"page_bytes": [4096, 4096]}, {"page_bytes": [1000, 501]}]
        assert config.stat().st_mode & 0o777 == 0o600
        assert config.parent.stat().st_mode & 0o777 == 0o700


async def test_a_config_that_disagrees_is_refused_with_both_shown(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 4)
    async with make_tier(tmp_path, slots):
        pass
    config = tmp_path / directory_name(LAYOUT) / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "parallel": [["tp", 2]]}))
    tier = make_tier(tmp_path, slots)
    try:
        with pytest.raises(
            ConfigError, match=r'(?s)there: .*\[\["tp", 2\]\].*here: .*"parallel": \[\].*another root_dir'
        ):
            await tier.lookup(some_keys(LAYOUT, 1))
    finally:
        await tier.aclose()
    config.write_bytes(b"\xff torn")
    with pytest.raises(ConfigError, match="torn"):
        async with make_tier(tmp_path, slots):
            pass
    assert os.listdir(config.parent / "owners") == []


async def test_layouts_and_ranks_do_not_meet(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 4)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
    for other in (replace(LAYOUT, rank=1), replace(LAYOUT, parallel=(("tp", 2),)), replace(LAYOUT, dtype="fp8")):
        async with make_tier(tmp_path, Slots(other, 4)) as tier:
            assert list(await tier.lookup(keys)) == [LookupResult.MISS] * 4


@pytest.mark.parametrize("quota", [None, 1 << 20])
async def test_an_account_that_somebody_keeps_locked_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int | None
) -> None:
    monkeypatch.setattr(usage_module, "JOIN_SECONDS", 0.0)
    slots = Slots(LAYOUT, 4)
    holder = await asyncio.to_thread(Usage, str(tmp_path), is_empty=lambda: True)
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, quota=quota)
    with holder.locked(), pytest.raises(TierUnavailable, match="held the account of the root for long: see whether"):
        await tier.start()
    await tier.start()
    await tier.aclose()
    await asyncio.to_thread(holder.leave)


async def test_what_can_never_be_left_free_is_refused(tmp_path: Path) -> None:
    space, slots = os.statvfs(tmp_path), Slots(LAYOUT, 4)
    disk = space.f_blocks * space.f_frsize
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, min_free=disk)
    with pytest.raises(ConfigError, match=f"min_free = {disk} bytes leaves no room .*: give the tier a smaller"):
        await tier.start()
    await tier.aclose()
    assert not (tmp_path / "usage").exists()


@pytest.mark.parametrize("root", ["file", "file/below"])
async def test_a_root_that_is_no_directory_is_a_config_error(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"root_dir .*file.* cannot be used: .*choose one"):
        async with make_tier(tmp_path / root, Slots(LAYOUT, 4)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_directory_behind_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / directory_name(LAYOUT)).symlink_to(elsewhere)
    tier = make_tier(tmp_path, Slots(LAYOUT, 4))
    with pytest.raises(ConfigError, match="is a symbolic link"):
        await tier.start()
    await tier.aclose()
    assert not any(elsewhere.iterdir())
    root = tmp_path / "root"
    root.symlink_to(elsewhere)  # a link that leads to the root hides nothing
    async with make_tier(root, Slots(LAYOUT, 4)):
        assert (elsewhere / "usage").exists()


def test_a_root_without_permission_is_a_config_error(tmp_path: Path) -> None:
    code = f"""
import asyncio, os
from asyncoffload.testing.slots import Slots, small_layout
from asyncoffload.tiers.fs.manager import FileSystemTierManager
slots = Slots(small_layout(), 1)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
asyncio.run(FileSystemTierManager(slots.layout, slots.view, "fs", {str(tmp_path)!r}).start())
"""
    tmp_path.chmod(0o700)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 1
    assert "cannot be used: [Errno 13] Permission denied" in child.stderr


async def test_direct_io_is_used_where_it_works(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 4)
    with ThreadPoolExecutor() as elsewhere:
        works = elsewhere.submit(file_system_takes_direct_io, str(tmp_path / "probe")).result()
    assert os.listdir(tmp_path) == []
    async with make_tier(tmp_path, slots) as tier:
        assert tier.stats()["direct_io"] == works
    async with make_tier(tmp_path, slots, "off") as tier:
        assert tier.stats()["direct_io"] == 0


async def test_direct_io_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 4)
    rows = slots.view.cast("B")[1 : 1 + 2 * slots.slot_bytes].cast("B", (2, slots.slot_bytes))
    assert slots_are_aligned(slots.view)
    assert not slots_are_aligned(rows)
    tier = FileSystemTierManager(LAYOUT, rows, "fs", tmp_path, 2, 2, direct_io="on")
    with pytest.raises(ConfigError, match=r"direct_io='on' cannot be had .* multiples of 4096 bytes"):
        async with tier:
            pass


async def test_slots_anywhere_in_memory_will_do(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 2)
    flat = slots.view.cast("B")
    rows = flat[1 : 1 + 3 * 9001].cast("B", (3, 9001))
    async with FileSystemTierManager(LAYOUT, rows, "fs", tmp_path, 2, 2) as tier:
        from asyncoffload.testing.slots import content_of
        from asyncoffload.types import TransferJob

        flat[1 : 1 + 8192] = content_of(keys[0], 8192)
        assert (await tier.store(TransferJob(keys[:1], [0]))).success
        assert (await tier.load(TransferJob(keys[:1], [2]))).success
        assert flat[1 + 2 * 9001 : 1 + 2 * 9001 + 8192] == content_of(keys[0], 8192)
