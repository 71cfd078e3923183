"""What a file tier tells of one block."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.errors import ClosedError
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyDisk
from asyncoffload.testing.slots import Slots, small_layout, some_keys
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import Fate, Findings, KVGroup, KVLayout, Status

LAYOUT = small_layout()
PLAIN = KVLayout("plain", "bfloat16", 16, (KVGroup((8192,)),))
BLOCK = file_bytes(8192)


def make(root: Path, slots: Slots, **options: object) -> FileSystemTierManager:
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, **options)  # type: ignore[arg-type]


def path_of(root: Path, key: OffloadKey, layout: KVLayout = LAYOUT) -> Path:
    return Path(block_path(str(root / directory_name(layout)), key))


def history(found: Findings) -> list[tuple[Fate, str, str]]:
    return [(entry.what, entry.why, entry.call) for entry in found.history]


async def test_a_block_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    slots, (key, other) = Slots(LAYOUT, 2), some_keys(LAYOUT, 2)
    async with make(tmp_path, slots) as tier:
        await tier.store(slots.store_job([key]))
        found = await tier.explain(key)
        assert found.holds is True
        assert found.details.startswith(f"{path_of(tmp_path, key)}, 12,288 bytes, last used ")
        assert await tier.explain(other) == Findings(holds=False, history=[], elsewhere=[])
    with pytest.raises(ClosedError):
        await tier.explain(key)


async def test_evicted_by_a_neighbour(tmp_path: Path) -> None:
    slots, theirs, (key,) = Slots(PLAIN, 1), Slots(PLAIN, 1), some_keys(PLAIN, 1)
    async with make(tmp_path, slots) as tier:
        await tier.store(slots.store_job([key]))
        async with make(tmp_path, theirs, quota=4 * BLOCK) as neighbour:
            for number in range(10_000):
                await neighbour.store(theirs.store_job(some_keys(PLAIN, 1, number)))
                if told := history(await neighbour.explain(key)):
                    break
                await asyncio.sleep(0.001)  # the housekeeping comes by itself
        assert told in ([(Fate.EVICTED, "recycled", "")], [(Fate.EVICTED, "quota", "")])
        found = await tier.explain(key)
        assert found.holds is False
        assert history(found) == told


async def test_a_file_system_that_does_not_answer(tmp_path: Path) -> None:
    slots, (first, second), disk = Slots(PLAIN, 2), some_keys(PLAIN, 2), FaultyDisk()
    tier = make(tmp_path, slots, make_files=disk.make_files, io_timeout=1.5)
    async with tier:
        with disk.gates["create"].shut():
            storing = asyncio.create_task(tier.store(slots.store_job([first])))
            while not tier.stats()["paused"]:  # noqa: ASYNC110 (real time has to pass)
                await asyncio.sleep(0.01)
            result = await tier.store(slots.store_job([second], 1))
            assert [outcome.status for outcome in result.outcomes] == [Status.SHED]
            found = await tier.explain(second)
            assert found.holds is None
            assert history(found) == [(Fate.SHED, "pause", "store")]
        await storing


async def test_a_layout_that_cannot_be_read(tmp_path: Path) -> None:
    slots, (key,) = Slots(LAYOUT, 1), some_keys(LAYOUT, 1)
    other = KVLayout("other", "bfloat16", 16, LAYOUT.groups)
    theirs = Slots(other, 1)
    async with make(tmp_path, theirs) as tier:
        await tier.store(theirs.store_job([key]))
    async with make(tmp_path, slots) as tier:
        assert list((await tier.explain(key)).elsewhere) == [
            "the same hash under another fingerprint: model other there, laws here"
        ]
        config = tmp_path / directory_name(other) / "config.json"
        config.write_text("nonsense")
        (text,) = (await tier.explain(key)).elsewhere
        assert "cannot be read" in text
        await tier.store(slots.store_job([key]))
        assert (await tier.explain(key)).elsewhere == []


async def test_long_differences_are_cut(tmp_path: Path) -> None:
    slots, (key,) = Slots(PLAIN, 1), some_keys(PLAIN, 1)
    other = KVLayout("plain", "bfloat16", 16, (KVGroup((512,) * 64),))
    theirs = Slots(other, 1)
    async with make(tmp_path, theirs) as tier:
        await tier.store(theirs.store_job([key]))
    async with make(tmp_path, slots) as tier:
        (text,) = (await tier.explain(key)).elsewhere
    assert text.startswith("the same hash under another fingerprint: groups [{'page_bytes': [512, 512,")
    assert text.endswith("… there, [{'page_bytes': [8192]}] here")
    assert len(text) < 200


async def test_a_root_that_is_gone(tmp_path: Path) -> None:
    slots, (key,) = Slots(LAYOUT, 1), some_keys(LAYOUT, 1)
    root = tmp_path / "root"
    async with make(root, slots) as tier:
        await tier.store(slots.store_job([key]))
        shutil.rmtree(root)
        assert await tier.explain(key) == Findings(holds=False, history=[], elsewhere=[])
