"""Directories of commands: they go with the command, or, if it was killed, with the next one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncoffload.cli.own_directory import own_directory, remove_dead
from tests.cli.real_root import run, run_json, words


def _killed(root: Path) -> str:
    """The name of a directory with a file, whose command was killed."""
    code = (
        "import os, signal, sys\n"
        "from asyncoffload.cli.own_directory import own_directory\n"
        "with own_directory(sys.argv[1], 'doctor') as place:\n"
        "    open(os.path.join(place, 'file'), 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    assert process.returncode == -signal.SIGKILL
    (name,) = os.listdir(root)
    return name


def test_it_is_there_for_as_long_as_it_is_used(tmp_path: Path) -> None:
    with own_directory(str(tmp_path), "bench") as place:
        assert os.path.dirname(place) == str(tmp_path)
        assert os.path.basename(place).startswith("asyncoffload-bench-")
        assert remove_dead(str(tmp_path)) == []
        with own_directory(str(tmp_path), "bench") as other:
            assert {place, other} <= {os.path.join(tmp_path, name) for name in os.listdir(tmp_path)}
    assert os.listdir(tmp_path) == []


def test_what_a_killed_command_left_goes_with_the_next(tmp_path: Path) -> None:
    name = _killed(tmp_path)
    with own_directory(str(tmp_path), "bench") as place:
        assert os.listdir(tmp_path) == [os.path.basename(place)]
    assert name.startswith("asyncoffload-doctor-")


def test_gc_removes_it_and_inspect_says_what_it_is(tmp_path: Path) -> None:
    name = _killed(tmp_path)
    assert f"{name} of a command that was killed: removed by asyncoffload gc" in words(run("inspect", tmp_path))
    status, dry = run_json("gc", tmp_path, "--dry-run")
    assert (status, dry["removed_directories"], os.listdir(tmp_path)) == (0, [name], [name])
    assert f"{name} would be removed" in words(run("gc", tmp_path, "--dry-run"))
    status, report = run_json("gc", tmp_path)
    assert (status, report["removed_directories"], report["strange"], os.listdir(tmp_path)) == (0, [name], [], [])


def test_what_only_looks_alike_stays(tmp_path: Path) -> None:
    (tmp_path / "asyncoffload-bench-notes").mkdir()
    (tmp_path / "asyncoffload-bench-abcdefgh").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "asyncoffload-bench-hgfedcba").symlink_to("elsewhere")
    before = sorted(os.listdir(tmp_path))
    assert remove_dead(str(tmp_path)) == []
    assert sorted(os.listdir(tmp_path)) == before


def test_without_locks_nobody_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_directory(str(tmp_path), "bench") as place:
        assert remove_dead(str(tmp_path)) == []
        assert os.path.isdir(place)
    assert os.listdir(tmp_path) == []


def test_one_that_is_taken_for_dead_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = fcntl.flock, list[str]()

    def late(fd: int, operation: int) -> None:
        if not taken:
            taken.extend(os.listdir(tmp_path))
            os.rmdir(tmp_path / taken[0])
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with own_directory(str(tmp_path), "bench") as place:
        assert os.path.isdir(place)
        assert os.path.basename(place) not in taken
