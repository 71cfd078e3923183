"""``gc``: rubbish goes, what is used longest ago goes first, and whoever uses the root notices nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.layout import directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs import collecting
from asyncoffload.tiers.fs.collecting import Collection
from asyncoffload.tiers.fs.eviction import Evictor
from asyncoffload.tiers.fs.system_calls import THE_SYSTEM
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import KVLayout, Status
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


def there(root: Path, keys: Sequence[OffloadKey], layout: KVLayout = LAYOUT) -> list[bool]:
    return [path_of(root, key, layout).exists() for key in keys]


def used_in_order(root: Path, keys: Sequence[OffloadKey], layout: KVLayout = LAYOUT, *, ago: float = 3600.0) -> None:
    """The first key was used longest ago."""
    now = time.time()
    for number, key in enumerate(keys):
        use(path_of(root, key, layout), now - ago - len(keys) + number)


@pytest.fixture
def rubbish(tmp_path: Path) -> list[OffloadKey]:
    """A root with a leftover of one who died, a quarantined file, and files that no tier made."""
    keys = keys_of(12)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)
    run("verify", tmp_path, "--quarantine")
    leave_temporary(tmp_path, keys[1])
    (tmp_path / directory_name(LAYOUT) / f"config.json.{DEAD}.tmp").write_text("{")
    (tmp_path / directory_name(LAYOUT) / "owners" / DEAD).write_text("pid 1\n")
    (tmp_path / directory_name(LAYOUT) / "mine.txt").write_text("mine")
    (tmp_path / "mine.txt").write_text("mine")
    return keys[1:]


def test_rubbish_goes_and_nothing_else(tmp_path: Path, rubbish: list[OffloadKey]) -> None:
    status, report = run_json("gc", tmp_path)
    assert status == 0
    assert set(report) == {
        "root",
        "dry_run",
        "interrupted",
        "bytes_before",
        "bytes_after",
        "quota",
        "within_quota",
        "removed",
        "removed_layouts",
        "removed_directories",
        "layouts",
        "strange",
    }
    (layout,) = report["layouts"]
    assert set(layout) == {"directory", "in_use", "bytes", "planned"}
    assert set(layout["planned"]) == set(report["removed"])
    removed = report["removed"]
    assert all(set(files) == {"files", "bytes"} for files in removed.values())
    assert {name: each["files"] for name, each in removed.items()} == {
        "leftovers": 2,
        "quarantined": 1,
        "older": 0,
        "over_quota": 0,
    }
    assert report["strange"] == ["mine.txt"]
    assert report["bytes_after"] == bytes_of(rubbish)
    assert all(there(tmp_path, rubbish))
    left = {name for _, _, names in os.walk(tmp_path) for name in names}
    assert not [name for name in left if name.endswith((".tmp", ".bad"))]
    assert DEAD not in left
    assert (tmp_path / "mine.txt").exists()
    assert (tmp_path / directory_name(LAYOUT) / "mine.txt").exists()
    text = words(run("gc", tmp_path))
    assert "leftovers none" in text
    assert "quarantined none" in text


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path, rubbish: list[OffloadKey]) -> None:
    used_in_order(tmp_path, rubbish)
    options = ("--quota", str(bytes_of(rubbish[6:])), "--older-than", "0.01")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    dry_status, dry = run_json("gc", tmp_path, "--dry-run", *options)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    status, real = run_json("gc", tmp_path, *options)
    assert (dry_status, status) == (0, 0)
    assert dry["removed"] == real["removed"]
    assert "nothing was changed" in words(run("gc", tmp_path, "--dry-run"))


def test_down_to_a_size_the_oldest_first(tmp_path: Path) -> None:
    keys = keys_of(20)
    store(tmp_path, keys)
    used_in_order(tmp_path, keys)
    status, report = run_json("gc", tmp_path, "--quota", str(bytes_of(keys[7:])))
    assert status == 0
    assert there(tmp_path, keys) == [False] * 7 + [True] * 13
    assert report["bytes_after"] == bytes_of(keys[7:])
    assert run("verify", tmp_path).exit_code == 0


def test_by_age(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    for key in keys[:2]:
        use(path_of(tmp_path, key), time.time() - 15 * 86400)
    _, report = run_json("gc", tmp_path, "--older-than", "14")
    assert there(tmp_path, keys) == [False, False, True, True, True, True]
    assert report["removed"]["older"] == {"files": 2, "bytes": bytes_of(keys[:2])}


def test_the_longest_span_of_time(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    assert run("gc", tmp_path, "--older-than", "100000", "--quota", "1GiB").exit_code == 0
    assert all(there(tmp_path, keys))


async def test_what_nobody_uses_goes_before_what_is_used(tmp_path: Path) -> None:
    slots, keys, unused = Slots(LAYOUT, 10), keys_of(10), keys_of(10, OTHER)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
        await asyncio.to_thread(store, tmp_path, unused, OTHER)
        used_in_order(tmp_path, keys, ago=9000.0)
        used_in_order(tmp_path, unused, OTHER)
        room = bytes_of(keys) + bytes_of(unused[4:], OTHER)
        assert (await asyncio.to_thread(run, "gc", tmp_path, "--quota", str(room))).exit_code == 0
        assert all(there(tmp_path, keys))
        assert there(tmp_path, unused, OTHER) == [False] * 4 + [True] * 6
        assert (await asyncio.to_thread(run, "gc", tmp_path, "--quota", str(bytes_of(keys[3:])))).exit_code == 0
        assert there(tmp_path, keys) == [False] * 3 + [True] * 7
        assert not any(there(tmp_path, unused, OTHER))
        loaded = await tier.load(slots.load_job(keys))
        expected = [Status.MISSING] * 3 + [Status.DONE] * 7
        assert [outcome.status for outcome in loaded.outcomes] == expected


async def test_the_account_of_those_who_use_the_root_stays_exact(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 24), keys_of(24)
    quota = 1000 * bytes_of(keys)
    async with make_tier(tmp_path, slots, quota=quota) as tier:
        await tier.store(slots.store_job(keys))
        used_in_order(tmp_path, keys)
        living = leave_temporary(tmp_path, keys[0], owner=os.listdir(tmp_path / directory_name(LAYOUT) / "owners")[0])
        room = str(bytes_of(keys[10:]))
        status, report = await asyncio.to_thread(run_json, "gc", tmp_path, "--quota", room)
        assert (status, report["bytes_after"]) == (0, bytes_of(keys[10:]))
        assert living.exists()
        assert tier.stats()["used_bytes"] == bytes_of(keys[10:])
        living.unlink()
        again = await tier.store(slots.store_job(keys_of(4, name="more")))
        assert again.success
        assert tier.stats()["used_bytes"] == bytes_of([*keys[10:], *keys_of(4, name="more")])


def test_a_block_that_is_used_meanwhile_is_passed_over(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    used_in_order(tmp_path, keys)
    collection = Collection(str(tmp_path), now=time.time(), quota=bytes_of(keys[3:]))
    collection.plan()
    assert sum(layout.removal.over_quota.files for layout in collection.layouts) == 3
    use(path_of(tmp_path, keys[1]), time.time())
    usage = Usage(str(tmp_path))
    try:
        removed = collection.carry_out(usage)
    finally:
        usage.leave()
    assert removed.over_quota.files == 2
    assert there(tmp_path, keys) == [False, True, False, True, True, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="only an administrator can give files away")
def test_an_administrator_leaves_nothing_that_tiers_cannot_open(tmp_path: Path) -> None:
    store(tmp_path, keys_of(2))
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 1234, 1234)
    (tmp_path / "usage").unlink()
    assert run("gc", tmp_path).exit_code == 0
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {1234}


def test_an_empty_layout_goes_once_it_is_quiet(tmp_path: Path) -> None:
    keys = keys_of(4)
    store(tmp_path, keys)
    store(tmp_path, keys, OTHER)
    used_in_order(tmp_path, keys)
    directory = tmp_path / directory_name(LAYOUT)
    _, report = run_json("gc", tmp_path, "--older-than", "0.001")
    assert report["removed_layouts"] == []
    assert directory.exists()
    for path in (directory, directory / "owners"):
        use(path, time.time() - 120)
    status, report = run_json("gc", tmp_path)
    assert (status, report["removed_layouts"]) == (0, [directory_name(LAYOUT)])
    assert not directory.exists()
    assert all(there(tmp_path, keys, OTHER))


async def test_an_empty_layout_that_is_used_stays(tmp_path: Path) -> None:
    async with make_tier(tmp_path, Slots(LAYOUT, 1)) as tier:
        await tier.start()
        directory = tmp_path / directory_name(LAYOUT)
        for path in (directory, directory / "owners"):
            use(path, time.time() - 120)
        _, report = await asyncio.to_thread(run_json, "gc", tmp_path)
        assert report["removed_layouts"] == []
        assert directory.exists()


def test_what_is_not_ours_can_be_too_much(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    (path_of(tmp_path, keys[0]).parent / "strange").write_bytes(bytes(100_000))
    result = run("gc", tmp_path, "--quota", "50kB")
    assert result.exit_code == 1
    assert "see asyncoffload inspect" in words(result)


def test_a_directory_that_no_tier_has_used_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = run("gc", tmp_path, "--quota", "1B", "--older-than", "0")
    assert result.exit_code == 0
    assert "layouts none: no tier has used this directory" in words(result)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_an_interrupt_ends_it_between_two_removals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(40)
    store(tmp_path, keys)
    used_in_order(tmp_path, keys)
    unlink = os.unlink

    def interrupting(path: str, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        unlink(path, **options)

    monkeypatch.setattr(collecting, "Evictor", partial(Evictor, calls=replace(THE_SYSTEM, unlink=interrupting)))
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # even where interrupts are ignored
    try:
        status, report = run_json("gc", tmp_path, "--older-than", "0.001")
        result = run("gc", tmp_path, "--older-than", "0.001")
    finally:
        signal.signal(signal.SIGINT, usual)
    left = sum(there(tmp_path, keys))
    gone = report["removed"]["older"]["files"]
    assert (status, report["interrupted"], result.exit_code) == (130, True, 130)
    assert "interrupted: this is not all of it" in words(result)
    assert 0 < gone < 40 - left < 40
    assert report["bytes_before"] - report["bytes_after"] == report["removed"]["older"]["bytes"]
    assert report["removed_layouts"] == []


def test_one_that_is_told_to_end_says_what_it_removed(tmp_path: Path) -> None:
    keys = keys_of(40)
    store(tmp_path / "root", keys)
    used_in_order(tmp_path / "root", keys)
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from asyncoffload.tiers.fs.eviction import Evictor\n"
        "evict = Evictor.evict\n"
        "def evicting(self, nbytes, max_files):\n"
        "    if max_files: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return evict(self, nbytes, max_files)\n"
        "Evictor.evict = evicting\n"
        "from asyncoffload.cli import main\n"
        "main()\n"
    )
    options = ["--older-than", "0.001", "--json", str(tmp_path / "x.json")]
    ended = subprocess.run([sys.executable, "-c", code, "gc", tmp_path / "root", *options], check=False)
    report = json.loads((tmp_path / "x.json").read_text())
    assert (ended.returncode, report["interrupted"]) == (143, True)
    left = sum(there(tmp_path / "root", keys))
    assert report["removed"]["older"]["files"] == 40 - left > 0


def test_an_interrupt_while_it_looks_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(4)
    store(tmp_path, keys)

    def interrupted(self: Collection, progress: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr(Collection, "plan", interrupted)
    status, report = run_json("gc", tmp_path, "--older-than", "0")
    assert (status, report["interrupted"], report["removed"]["older"]["files"]) == (130, True, 0)
    assert all(there(tmp_path, keys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quota", "much"], "'much' is not a size"),
        (["--quota", "0"], "'0' is not more than 0 bytes"),
        (["--older-than", "-1"], "'-1' is no number of days: write 14"),
        (["--older-than", "old"], "'old' is no number of days"),
        (["--older-than", "inf"], "'inf' is no number of days"),
        (["--older-than", "1e300"], "'1e300' is no number of days"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("gc", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)
