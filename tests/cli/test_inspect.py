"""``inspect``: what lies in a root, who uses it, and what a block is about."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pytest

from asyncoffload.core.layout import describe, directory_name
from asyncoffload.keys import block_hash_of, group_of
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs.summary import LayoutSummary
from asyncoffload.tiers.fs.survey import FoundFile
from tests.cli.real_root import (
    DEAD,
    LAYOUT,
    OTHER,
    bytes_of,
    flip,
    keys_of,
    leave_temporary,
    make_tier,
    path_of,
    run,
    run_json,
    store,
    use,
    words,
)


def test_a_root_of_two_layouts(tmp_path: Path) -> None:
    keys = keys_of(20)
    store(tmp_path, keys)
    store(tmp_path, keys_of(7, OTHER), OTHER)
    use(path_of(tmp_path, keys[0]), time.time() - 3 * 3600)
    use(path_of(tmp_path, keys[1]), time.time() - 90 * 86400)
    flip(path_of(tmp_path, keys[2]), 4100)
    run("verify", tmp_path, "--quarantine")
    leave_temporary(tmp_path, keys[3])
    (path_of(tmp_path, keys[0]).parent / "strange").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    status, report = run_json("inspect", tmp_path)
    assert status == 0
    assert set(report) == {
        "root",
        "interrupted",
        "free_bytes",
        "disk_bytes",
        "account",
        "layouts",
        "left_in_last_hour",
        "strange",
    }
    assert report["left_in_last_hour"] == [{"what": "corrupt", "why": "verify", "blocks": 1}]
    assert report["strange"] == ["notes.txt"]
    layouts = {each["directory"]: each for each in report["layouts"]}
    assert set(layouts) == {directory_name(LAYOUT), directory_name(OTHER)}
    ours = layouts[directory_name(LAYOUT)]
    assert set(ours) == {
        "directory",
        "fingerprint",
        "rank",
        "config",
        "trouble",
        "in_use",
        "owners",
        "blocks",
        "groups",
        "ages",
        "being_written",
        "leftovers",
        "quarantined",
        "strange",
    }
    assert ours["config"] == describe(LAYOUT)
    assert ours["in_use"] is False
    assert set(ours["blocks"]) == {"files", "bytes", "disk_bytes"}
    assert ours["blocks"]["files"] == 19
    assert ours["blocks"]["bytes"] == bytes_of([*keys[:2], *keys[3:]])
    assert {group: blocks["files"] for group, blocks in ours["groups"].items()} == {"0": 9, "1": 10}
    assert {each["up_to_seconds"]: each["files"] for each in ours["ages"]} == {
        60: 17,
        600: 0,
        3600: 0,
        6 * 3600: 1,
        86400: 0,
        7 * 86400: 0,
        30 * 86400: 0,
        None: 1,
    }
    assert [ours[kind]["files"] for kind in ("quarantined", "leftovers", "being_written", "strange")] == [1, 1, 0, 1]
    table = words(run("inspect", tmp_path))
    for text in (
        "laws",
        "another",
        "tp 2",
        "groups 2 x 4,096; 1 x 1,000 + 1 x 501 (layers x bytes of a page)",
        "19 files",
        "used in 6 hours",
        "older",
        "nobody",
        "notes.txt",
        "in the last hour 1 corrupt (verify)",
    ):
        assert text in table


async def test_who_uses_it_now(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), keys_of(4)
    quota = 100 * bytes_of(keys)
    async with make_tier(tmp_path, slots, quota=quota) as tier:
        await tier.store(slots.store_job(keys))
        (owner,) = os.listdir(tmp_path / directory_name(LAYOUT) / "owners")
        leave_temporary(tmp_path, keys[0], owner=owner)
        _, report = await asyncio.to_thread(run_json, "inspect", tmp_path)
        text = words(await asyncio.to_thread(run, "inspect", tmp_path))
    (ours,) = report["layouts"]
    owners = {each["name"]: each for each in ours["owners"]}
    assert set(owners[owner]) == {"name", "alive", "pid", "since"}
    assert (owners[owner]["alive"], owners[owner]["pid"]) == (True, os.getpid())
    assert ours["in_use"] is True
    assert ours["being_written"]["files"] == 1
    assert ours["leftovers"]["files"] == 0
    account = report["account"]
    assert isinstance(account, dict)
    assert set(account) == {"used", "reserved", "quota", "min_free", "users", "keeper", "exact"}
    assert (account["used"], account["quota"], account["min_free"], account["users"]) == (
        bytes_of(keys),
        quota,
        None,
        1,
    )
    assert f"process {os.getpid()} for" in text
    _, after = await asyncio.to_thread(run_json, "inspect", tmp_path)
    assert after["account"] is None


def test_who_died_without_leaving(tmp_path: Path) -> None:
    store(tmp_path, keys_of(1))
    (tmp_path / directory_name(LAYOUT) / "owners" / DEAD).write_text("pid 1\n")
    _, report = run_json("inspect", tmp_path)
    (owner,) = report["layouts"][0]["owners"]
    assert (owner["name"], owner["alive"], owner["pid"]) == (DEAD, False, 1)
    assert "nobody; 1 died without leaving" in words(run("inspect", tmp_path))


def test_a_config_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    store(tmp_path, keys_of(1))
    config = tmp_path / directory_name(LAYOUT) / "config.json"
    config.write_text("nonsense")
    assert "is not JSON" in words(run("inspect", tmp_path))
    config.unlink()
    assert "no config.json" in words(run("inspect", tmp_path))


@pytest.mark.parametrize("name", ["key", "hash", "beginning"])
def test_a_block(tmp_path: Path, name: str) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    key = keys[3]
    digits = {"key": key.hex(), "hash": block_hash_of(key).hex().upper(), "beginning": "0x" + key.hex()[:9]}[name]
    status, report = run_json("inspect", tmp_path, digits)
    assert status == 0
    assert set(report) == {"root", "key", "served", "looked_in", "files", "left"}
    assert report["served"] is True
    assert report["left"] == []
    (file,) = report["files"]
    assert set(file) == {
        "path",
        "kind",
        "directory",
        "model",
        "block_hash",
        "group",
        "bytes",
        "disk_bytes",
        "modified",
        "owner",
        "owner_alive",
        "header",
        "state",
        "trouble",
    }
    assert (file["path"], file["kind"], file["state"]) == (str(path_of(tmp_path, key)), "block", "good")
    assert (file["block_hash"], file["group"]) == (block_hash_of(key).hex(), group_of(key))
    assert file["header"] == {
        "version": 1,
        "rank": 0,
        "fingerprint": directory_name(LAYOUT).split("_")[0],
        "key": key.hex(),
        "payload_bytes": LAYOUT.group_bytes(group_of(key)),
    }
    table = words(run("inspect", tmp_path, digits))
    assert "the block, under its final name" in table
    assert "verified good" in table


def test_a_block_that_lies_in_two_layouts_and_is_being_written_in_one(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    store(tmp_path, keys, OTHER)
    leave_temporary(tmp_path, keys[0])
    _, report = run_json("inspect", tmp_path, keys[0].hex())
    assert sorted((file["directory"], file["kind"]) for file in report["files"]) == sorted(
        [
            (directory_name(LAYOUT), "block"),
            (directory_name(LAYOUT), "temporary"),
            (directory_name(OTHER), "block"),
        ]
    )
    assert "a leftover of a process that died" in words(run("inspect", tmp_path, keys[0].hex()))


def test_a_block_that_would_not_be_served(tmp_path: Path) -> None:
    keys = keys_of(4)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)
    shutil.copy(path_of(tmp_path, keys[3]), path_of(tmp_path, keys[1]))
    for key, trouble in ((keys[0], "the checksum does not match"), (keys[1], "the key is")):
        result = run("inspect", tmp_path, key.hex())
        assert result.exit_code == 1
        assert trouble in words(result)
    run("verify", tmp_path, "--quarantine")
    result = run("inspect", tmp_path, keys[0].hex())
    assert result.exit_code == 1
    assert "set aside, since it was not the block" in words(result)


def test_a_block_that_is_nowhere(tmp_path: Path) -> None:
    store(tmp_path, keys_of(1))
    result = run("inspect", tmp_path, "ffffffff")
    assert result.exit_code == 1
    assert "nowhere: a load of it is a miss" in words(result)
    assert directory_name(LAYOUT) in result.output


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, partial(os.symlink, "elsewhere")], ids=["d", "p", "l"])
def test_something_else_under_the_name_of_a_block(tmp_path: Path, make: Callable[[str], None]) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    path = path_of(tmp_path, keys[0])
    path.unlink()
    make(str(path))
    result = run("inspect", tmp_path, keys[0].hex())
    assert result.exit_code == 1
    assert "no file, though it has the name of the block" in words(result)
    assert str(path) in result.output
    _, report = run_json("inspect", tmp_path, keys[0].hex())
    assert [each["kind"] for each in report["files"]] == ["strange"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xyz"], "'xyz' names no block: give the hexadecimal digits"),
        (["abc"], "'abc' names no block"),
        (["a" * 137], "names no block"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("inspect", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


def test_an_empty_root(tmp_path: Path) -> None:
    result = run("inspect", tmp_path)
    assert result.exit_code == 0
    assert "in 0 layouts" in words(result)
    assert "layouts none: no tier has used this directory" in words(result)


def test_an_interrupt_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, keys_of(8))
    store(tmp_path, keys_of(8, OTHER), OTHER)
    add, calls = LayoutSummary.add, []

    def interrupted(self: LayoutSummary, files: Iterable[FoundFile], now: float) -> None:
        calls.append(self)
        if len(calls) == 5:
            raise KeyboardInterrupt
        add(self, files, now)

    monkeypatch.setattr(LayoutSummary, "add", interrupted)
    status, report = run_json("inspect", tmp_path)
    assert (status, report["interrupted"]) == (130, True)
    assert report["layouts"][0]["blocks"]["files"] > 0
    calls.clear()
    result = run("inspect", tmp_path)
    assert result.exit_code == 130
    assert "interrupted: this is not all of it" in words(result)


def test_nothing_is_changed(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    leave_temporary(tmp_path, keys[0])

    def everything() -> dict[str, tuple[int, int]]:
        found = {}
        for place, _, names in os.walk(tmp_path):
            for name in (".", *names):
                status = os.stat(os.path.join(place, name))
                found[os.path.join(place, name)] = status.st_mtime_ns, status.st_size
        return found

    before = everything()
    assert run("inspect", tmp_path).exit_code == 0
    assert run("inspect", tmp_path, keys[0].hex()).exit_code == 0
    assert run("verify", tmp_path).exit_code == 0
    assert everything() == before
