"""``inspect DIR KEY``: when a block left, and why, whoever removed it and however long ago."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey, block_hash_of, group_of
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs.departures import DEPARTURES, OLDER_DEPARTURES, Departures
from asyncoffload.types import Fate
from tests.cli.real_root import (
    LAYOUT,
    OTHER,
    bytes_of,
    flip,
    keys_of,
    make_tier,
    path_of,
    run,
    run_json,
    store,
    use,
    words,
)


def told(root: Path, key: OffloadKey) -> list[tuple[str, str]]:
    _, report = run_json("inspect", root, key.hex())
    return [(one["what"], one["why"]) for one in report["left"]]


def leave(root: Path, key: OffloadKey, what: Fate, why: str = "", seconds_ago: float = 0.0) -> None:
    departures = Departures(str(root), clock=lambda: time.time() - seconds_ago)
    departures.note(block_path(str(root / directory_name(LAYOUT)), key), 8192, what, why)
    departures.flush()


async def evict(root: Path, keys: list[OffloadKey]) -> list[OffloadKey]:
    """Store more than a quota holds; returns what had to go."""
    slots = Slots(LAYOUT, len(keys))
    async with make_tier(root, slots, quota=bytes_of(keys) // 2) as tier:
        for key, slot in zip(keys, range(len(keys)), strict=True):
            for _ in range(1000):
                if (await tier.store(slots.store_job([key], slot))).success:
                    break
                await asyncio.sleep(0.005)  # the housekeeping comes by itself
        await tier.drain()
    return [key for key in keys if not path_of(root, key).exists()]


async def test_evicted(tmp_path: Path) -> None:
    keys = [key for key in keys_of(60) if group_of(key) == 0]
    gone = await evict(tmp_path, keys)
    assert gone
    _, report = await asyncio.to_thread(run_json, "inspect", tmp_path, gone[0].hex())
    assert report["served"] is False
    assert report["files"] == []
    (left,) = report["left"]
    assert set(left) == {"when", "what", "why", "bytes", "directory", "block_hash", "group"}
    assert left["what"] == "evicted"
    assert left["why"] in ("quota", "recycled")
    assert left["bytes"] == bytes_of(gone[:1])
    assert left["directory"] == directory_name(LAYOUT)
    assert (left["block_hash"], left["group"]) == (block_hash_of(gone[0]).hex(), 0)
    assert abs(left["when"] - time.time()) < 600
    text = words(await asyncio.to_thread(run, "inspect", tmp_path, gone[0].hex()))
    assert "nowhere: a load of it is a miss" in text
    assert "evicted, for the sake of" in text
    _, report = await asyncio.to_thread(run_json, "inspect", tmp_path)
    counted = {(one["what"], one["why"]): one["blocks"] for one in report["left_in_last_hour"]}
    assert sum(counted.values()) == len(gone)
    assert {what for what, _ in counted} == {"evicted"}
    assert "evicted (" in words(await asyncio.to_thread(run, "inspect", tmp_path))


def test_corrupt_and_then_removed_from_quarantine(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)

    async def load() -> None:
        slots = Slots(LAYOUT, 1)
        async with make_tier(tmp_path, slots) as tier:
            await tier.load(slots.load_job(keys[:1]))

    asyncio.run(load())
    assert told(tmp_path, keys[0]) == [("corrupt", "")]
    assert "set aside, since it was not the block" in words(run("inspect", tmp_path, keys[0].hex()))
    assert run("gc", tmp_path).exit_code == 0
    assert told(tmp_path, keys[0]) == [("corrupt", ""), ("discarded", "gc")]
    assert "removed from quarantine by gc" in words(run("inspect", tmp_path, keys[0].hex()))
    assert told(tmp_path, keys[1]) == []


def test_collected(tmp_path: Path) -> None:
    keys = keys_of(3)
    store(tmp_path, keys)
    use(path_of(tmp_path, keys[0]), time.time() - 30 * 86400)
    use(path_of(tmp_path, keys[1]), time.time() - 86400)
    assert run("gc", tmp_path, "--older-than", "14", "--dry-run").exit_code == 0
    assert not (tmp_path / DEPARTURES).exists()
    assert run("gc", tmp_path, "--older-than", "14").exit_code == 0
    assert run("gc", tmp_path, "--quota", str(bytes_of(keys[2:]))).exit_code == 0
    assert told(tmp_path, keys[0]) == [("collected", "older_than")]
    assert told(tmp_path, keys[1]) == [("collected", "quota")]
    assert told(tmp_path, keys[2]) == []
    assert "removed by gc (older_than)" in words(run("inspect", tmp_path, keys[0].hex()))


def test_set_aside_by_verify(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)
    assert run("verify", tmp_path).exit_code == 1
    assert told(tmp_path, keys[0]) == []
    assert run("verify", tmp_path, "--quarantine").exit_code == 1
    assert told(tmp_path, keys[0]) == [("corrupt", "verify")]


def test_a_block_that_came_back(tmp_path: Path) -> None:
    keys = keys_of(1)
    store(tmp_path, keys)
    leave(tmp_path, keys[0], Fate.EVICTED, "quota", 7200)
    result = run("inspect", tmp_path, keys[0].hex())
    assert result.exit_code == 0
    assert "verified good" in words(result)
    assert "2 hours ago: evicted, for the sake of the quota" in words(result)
    _, report = run_json("inspect", tmp_path)
    assert report["left_in_last_hour"] == []


def test_the_same_hash_in_another_layout(tmp_path: Path) -> None:
    keys = keys_of(1)
    store(tmp_path, keys, OTHER)
    leave(tmp_path, keys[0], Fate.EVICTED, "min_free", 100)
    _, report = run_json("inspect", tmp_path, keys[0].hex())
    assert [file["directory"] for file in report["files"]] == [directory_name(OTHER)]
    assert [one["directory"] for one in report["left"]] == [directory_name(LAYOUT)]


@pytest.mark.parametrize("name", ["key", "hash", "beginning"])
def test_names_of_a_block(tmp_path: Path, name: str) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    for key in keys:
        leave(tmp_path, key, Fate.EVICTED, "quota")
    digits = {"key": keys[0].hex(), "hash": block_hash_of(keys[0]).hex(), "beginning": keys[0].hex()[:9]}[name]
    _, report = run_json("inspect", tmp_path, digits)
    assert [one["block_hash"] for one in report["left"]] == [block_hash_of(keys[0]).hex()]


def test_a_block_that_never_was(tmp_path: Path) -> None:
    store(tmp_path, keys_of(1))
    text = words(run("inspect", tmp_path, "ffffffff"))
    assert "not that anybody knows: never stored, or longer ago than the journal reaches" in text


def test_many_departures_of_one_block(tmp_path: Path) -> None:
    keys = keys_of(1)
    store(tmp_path, keys)
    for seconds in range(30, 0, -1):
        leave(tmp_path, keys[0], Fate.EVICTED, "quota", seconds)
    assert "… and 20 times before" in words(run("inspect", tmp_path, keys[0].hex()))
    assert len(told(tmp_path, keys[0])) == 30


def everything(root: Path, *arguments: str) -> list[Any]:
    status, report = run_json("inspect", root, *arguments)
    return [status, report["strange"] if not arguments else report["left"]]


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"nonsense\n" * 100, b"\xff\xfe\n1 evicted"])
def test_foreign_content_breaks_nothing(tmp_path: Path, content: bytes) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    for name in (DEPARTURES, OLDER_DEPARTURES):
        (tmp_path / name).write_bytes(content)
    assert everything(tmp_path) == [0, []]
    assert everything(tmp_path, keys[0].hex()) == [0, []]
    assert run("gc", tmp_path, "--older-than", "0").exit_code == 0
    assert told(tmp_path, keys[0]) == [("collected", "older_than")]
    assert run("verify", tmp_path).exit_code == 0
    assert run("doctor", tmp_path, "--no-measure").exit_code == 0


def test_gc_leaves_the_journal(tmp_path: Path) -> None:
    keys = keys_of(1)
    store(tmp_path, keys)
    leave(tmp_path, keys[0], Fate.EVICTED)
    (tmp_path / OLDER_DEPARTURES).touch()
    result = run("gc", tmp_path, "--older-than", "0", "--json", "-")
    assert '"strange": []' in result.stdout
    assert (tmp_path / DEPARTURES).exists()
    assert (tmp_path / OLDER_DEPARTURES).exists()
