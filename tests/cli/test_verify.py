"""``verify``: it says of each block what a load would, and changes nothing unless it is told to."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asyncoffload.cli.app import app
from asyncoffload.cli.verifying import Verification, open_layout
from asyncoffload.core.layout import directory_name
from asyncoffload.keys import block_hash_of
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs.checking import State
from asyncoffload.tiers.fs.survey import layout_directories
from asyncoffload.types import Status
from tests.cli.real_root import (
    LAYOUT,
    OTHER,
    bytes_of,
    cut,
    flip,
    keys_of,
    make_tier,
    path_of,
    run,
    run_json,
    store,
    words,
)


def test_a_good_root(tmp_path: Path) -> None:
    keys, others = keys_of(20), keys_of(7, OTHER)
    store(tmp_path, keys)
    store(tmp_path, others, OTHER)
    status, report = run_json("verify", tmp_path)
    assert status == 0
    assert set(report) == {"root", "seconds", "interrupted", "blocks", "bytes", "layouts", "bad"}
    assert report["blocks"] == 27
    assert report["bytes"] == bytes_of(keys) + bytes_of(others, OTHER)
    assert report["bad"] == []
    by_name = {each["directory"]: each for each in report["layouts"]}
    ours = by_name[directory_name(LAYOUT)]
    assert ours == {
        "directory": directory_name(LAYOUT),
        "fingerprint": directory_name(LAYOUT).split("_")[0],
        "rank": 0,
        "model": "laws",
        "trouble": "",
        "blocks": 20,
        "good": 20,
        "bad": 0,
        "gone": 0,
        "unreadable": 0,
        "bytes": bytes_of(keys),
    }
    assert by_name[directory_name(OTHER)]["rank"] == 1


def test_it_says_what_a_load_says(tmp_path: Path) -> None:
    keys = keys_of(12)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4096)
    flip(path_of(tmp_path, keys[1]), 4096 + 1500)
    flip(path_of(tmp_path, keys[2]), 45)
    flip(path_of(tmp_path, keys[3]), 4090)
    cut(path_of(tmp_path, keys[4]), 5000)
    cut(path_of(tmp_path, keys[5]), 0)
    shutil.copy(path_of(tmp_path, keys[6]), path_of(tmp_path, keys[8]))
    status, report = run_json("verify", tmp_path)
    assert status == 1
    bad = {each["key"]: each for each in report["bad"]}
    assert set(bad) == {keys[n].hex() for n in (0, 1, 2, 3, 4, 5, 8)}
    assert set(bad[keys[0].hex()]) == {"path", "key", "state", "trouble", "quarantined"}
    assert "checksum" in bad[keys[0].hex()]["trouble"]
    assert "the key is" in bad[keys[8].hex()]["trouble"]
    assert "ends after 5000 bytes" in bad[keys[4].hex()]["trouble"]
    table = run("verify", tmp_path)
    assert table.exit_code == 1
    assert "5 good, 7 bad" in table.output
    assert "--quarantine" in table.output
    assert all(path_of(tmp_path, key).exists() for key in keys)


def test_quarantine_sets_aside_what_is_bad_and_nothing_else(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4096)
    cut(path_of(tmp_path, keys[1]), 100)
    status, report = run_json("verify", tmp_path, "--quarantine")
    assert status == 1
    assert [each["quarantined"] for each in report["bad"]] == [True, True]
    assert [path_of(tmp_path, key).exists() for key in keys] == [False, False, True, True, True, True]
    assert path_of(tmp_path, keys[0]).with_suffix(".bin.bad").exists()
    assert run_json("verify", tmp_path)[0] == 0


async def test_beside_a_tier_that_uses_the_root(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 12), keys_of(12)
    async with make_tier(tmp_path, slots, quota=4 * bytes_of(keys)) as tier:
        await tier.store(slots.store_job(keys))
        flip(path_of(tmp_path, keys[3]), 5000)
        result = await asyncio.to_thread(run, "verify", tmp_path, "--quarantine")
        assert "11 good, 1 bad" in result.output
        loaded = await tier.load(slots.load_job(keys))
        assert [outcome.status for outcome in loaded.outcomes] == [
            Status.MISSING if key == keys[3] else Status.DONE for key in keys
        ]
        assert slots.have(keys[:3])


def test_blocks_that_are_removed_meanwhile_are_no_trouble(tmp_path: Path) -> None:
    keys = keys_of(8)
    store(tmp_path, keys)
    layouts = [open_layout(directory) for directory in layout_directories(str(tmp_path))]
    verification = Verification(layouts, n_threads=1)
    for checker_key in keys[4:]:
        os.unlink(path_of(tmp_path, checker_key))
    verification.run()
    assert layouts[0].counts[State.GOOD] == 4
    assert layouts[0].is_well


def test_a_block_without_config_is_checked_by_its_own_header(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path, keys)
    os.unlink(tmp_path / directory_name(LAYOUT) / "config.json")
    assert run_json("verify", tmp_path)[0] == 0
    flip(path_of(tmp_path, keys[0]), 3)
    cut(path_of(tmp_path, keys[1]), 4096)
    cut(path_of(tmp_path, keys[2]), 10)
    flip(path_of(tmp_path, keys[3]), 4097)
    status, report = run_json("verify", tmp_path, "--quarantine")
    assert status == 1
    by_key = {each["key"]: each for each in report["bad"]}
    assert set(by_key) == {key.hex() for key in keys[:4]}
    assert [by_key[key.hex()]["quarantined"] for key in keys[:4]] == [False, False, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not what a tier writes"),
        ('{"model": 3}', "is not what a tier writes"),
        ('{"format_version": 7}', "is of format version 7"),
    ],
)
def test_a_config_that_tiers_would_refuse_is_bad(tmp_path: Path, text: str, message: str) -> None:
    store(tmp_path, keys_of(2))
    (tmp_path / directory_name(LAYOUT) / "config.json").write_text(text)
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert message in words(result)
    assert "2 good" in result.output


def test_a_directory_under_a_wrong_name_is_bad(tmp_path: Path) -> None:
    store(tmp_path, keys_of(2))
    (tmp_path / directory_name(LAYOUT)).rename(tmp_path / directory_name(OTHER))
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert "a directory was renamed, or the file copied" in words(result)
    assert "2 bad" in result.output


def test_foreign_files_and_directories_are_left_alone(tmp_path: Path) -> None:
    keys = keys_of(2)
    store(tmp_path, keys)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("0" * 32 + "_r00")).mkdir()
    (path_of(tmp_path, keys[0]).parent / "strange").write_text("mine")
    (path_of(tmp_path, keys[0]).parent / f"{'ab' * 16}.bin").mkdir()
    status, report = run_json("verify", tmp_path)
    assert (status, report["blocks"]) == (0, 2)


def test_an_empty_root(tmp_path: Path) -> None:
    result = run("verify", tmp_path)
    assert result.exit_code == 0
    assert "no tier has used this directory" in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "fast"], "'fast' is not a size"),
        (["--rate", "0"], "'0' is not more than 0 bytes"),
        (["--threads", "0"], "'0' is neither a number of threads nor auto"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory: make it first"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("verify", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


def test_a_root_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist: name the root_dir of a tier" in words(run("verify", tmp_path / "nowhere"))
    assert "is not a directory: name the root_dir" in words(run("verify", tmp_path / "file"))


def test_a_layout_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, keys_of(1))

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("verify", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path}: Permission denied; run this as the user that the tiers run as" in words(result)


def test_an_interrupt_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, keys_of(8))

    def interrupted(self: Verification, progress: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr(Verification, "run", interrupted)
    result = run("verify", tmp_path)
    assert result.exit_code == 130
    assert "interrupted: this is not all of it" in words(result)


def test_as_a_process(tmp_path: Path) -> None:
    keys = keys_of(6)
    store(tmp_path / "root", keys)
    flip(path_of(tmp_path / "root", keys[0]), 4100)
    command = [sys.executable, "-c", "from asyncoffload.cli import main; main()", "verify", str(tmp_path / "root")]
    ended = subprocess.run(
        [*command, "--rate", "1GiB", "--threads", "2", "--json", str(tmp_path / "bad.json")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "200"},
    )
    assert ended.returncode == 1, ended.stderr
    assert "5 good" in ended.stdout
    assert "verifying" in ended.stderr  # the progress bar
    (bad,) = json.loads((tmp_path / "bad.json").read_text())["bad"]
    assert bad["path"] == str(path_of(tmp_path / "root", keys[0]))


def _heed_interrupts() -> None:
    """A shell that runs the tests in the background has them, and all they start, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_it_however_slow_the_pace(tmp_path: Path) -> None:
    store(tmp_path, keys_of(8))
    command = [sys.executable, "-c", "from asyncoffload.cli import main; main()", "verify", str(tmp_path)]
    slowly = subprocess.Popen(
        [*command, "--rate", "1", "--threads", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "200"},
        preexec_fn=_heed_interrupts,
    )
    assert slowly.stderr is not None
    shown = b""
    while b"8/8" not in shown:  # every directory was listed, and blocks wait for their turn
        chunk = os.read(slowly.stderr.fileno(), 4096)
        assert chunk, shown.decode()
        shown += chunk
    slowly.send_signal(signal.SIGINT)
    output, complaints = slowly.communicate(timeout=60)
    assert slowly.returncode == 130, complaints.decode()
    assert "interrupted: this is not all of it" in " ".join(output.decode().split())


def test_the_block_it_names_can_be_inspected(tmp_path: Path) -> None:
    keys = keys_of(3)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)
    narrow = CliRunner().invoke(app, ["verify", str(tmp_path)], env={"COLUMNS": "80"}).output
    digits = block_hash_of(keys[0]).hex()[:16]
    assert f" {digits} " in narrow
    assert "the checksum does not match" in words(run("inspect", tmp_path, digits))


def test_bad_blocks_are_told_by_layout(tmp_path: Path) -> None:
    for layout in (LAYOUT, OTHER):
        keys = keys_of(3, layout)
        store(tmp_path, keys, layout)
        flip(path_of(tmp_path, keys[0], layout), 4100)
    text = words(run("verify", tmp_path))
    for layout in (LAYOUT, OTHER):
        assert f"bad in {directory_name(layout)}" in text


def test_what_cannot_be_set_aside_is_said(tmp_path: Path) -> None:
    (key,) = keys_of(1)
    store(tmp_path, [key])
    path = path_of(tmp_path, key)
    flip(path, 4100)
    (path.with_name(f"{path.name}.bad") / "in the way").mkdir(parents=True)
    status, report = run_json("verify", tmp_path, "--quarantine")
    assert (status, report["bad"][0]["quarantined"], path.exists()) == (1, False, True)
    assert "Those that are not in quarantine could not be set aside" in words(run("verify", tmp_path, "--quarantine"))
