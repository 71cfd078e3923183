"""The operators' commands as a family: they teach, their help is instant, and they end alike."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.cli.results import ended, show, size_text
from asyncoffload.core.layout import directory_name
from asyncoffload.core.verdict import span
from asyncoffload.errors import InternalError, InvalidArgument
from tests.cli.real_root import LAYOUT, keys_of, run, store, words

COMMANDS = [["doctor"], ["inspect"], ["verify"], ["gc"], ["bench", "fs"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(command: Sequence[str]) -> None:
    text = words(run(*command, "--help"))
    assert "The exit status is 0" in text
    assert f"• asyncoffload {' '.join(command)} /var/cache/kv" in text
    assert "--json" in text


def test_help_is_instant() -> None:
    code = (
        "import sys; sys.argv[1:] = ['verify', '--help']\n"
        "from asyncoffload.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('imported', sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("imported []\n")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InvalidArgument("[x] is wrong: say y"), 2, "error: [x] is wrong: say y\n"),
        (InternalError("bug"), 2, "error: bug\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied; run this as the user"),
        (OSError(5, "Input/output error"), 2, "the operating system refused: Input/output error\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_commands_end_alike(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert ended(work) == status
    assert message in capsys.readouterr().err
    assert ended(lambda: 1) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_directory_that_cannot_be_looked_at(command: Sequence[str]) -> None:
    result = run(*command, "x" * 300)
    assert result.exit_code == 2
    assert "cannot be looked at: File name too long" in words(result)


def test_a_directory_that_another_user_may_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    result = run("verify", tmp_path)
    assert result.exit_code == 2
    assert "cannot be looked at: Permission denied; run this as the user that the tiers run as" in words(result)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_variable_that_is_not_set_is_no_directory(command: Sequence[str]) -> None:
    result = run(*command, "")
    assert result.exit_code == 2
    assert "the name is empty, as a variable is that was not set" in words(result)


@pytest.mark.parametrize("command", COMMANDS[:-1], ids=" ".join)
@pytest.mark.parametrize("way", ["", "/", "/.", "/owners/.."])
def test_the_directory_of_a_layout_is_no_root(tmp_path: Path, command: Sequence[str], way: str) -> None:
    store(tmp_path, keys_of(1))
    result = run(*command, f"{tmp_path / directory_name(LAYOUT)}{way}")
    assert result.exit_code == 2
    assert f"is the directory of a layout, one of those below a root: name '{tmp_path}'" in words(result)


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the figures cannot be written"):
        show({}, lambda: "table", tmp_path / "nowhere" / "x.json")


def test_words_for_humans() -> None:
    assert size_text(3 << 30) == "3.0GiB"
    spans = (-1, 5, 119, 120, 7199, 7200, 47 * 3600, 48 * 3600, 400 * 86400)
    assert [span(seconds) for seconds in spans] == [
        "0 seconds",
        "5 seconds",
        "119 seconds",
        "2 minutes",
        "120 minutes",
        "2 hours",
        "47 hours",
        "2 days",
        "400 days",
    ]
