"""The command line: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from asyncoffload.cli import main
from asyncoffload.cli.app import app

SMALL = ("--requests", "20", "--block-bytes", "4KiB", "--host-bytes", "1MiB")


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_the_version() -> None:
    assert _run("--version").output == f"asyncoffload {version('asyncoffload')}\n"


def test_without_its_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "asyncoffload.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"needs typer: pip install 'asyncoffload\[cli\]'"):
        main()


def test_help_teaches() -> None:
    text = _run("replay", "--help").output
    assert "hash_ids" in text
    assert "exit status" in text
    assert "--settle" in text


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_replay_prints_a_table_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = _run("replay", *SMALL, "--loop", loop)
    assert run.exit_code == 0, run.output
    for text in ("20 of 20", "every byte right", "hits", "fs -> CPU", "load latency", "event-loop lag", loop):
        assert text in run.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durability", ["none", "fsync"])
def test_named_files_are_written_and_found_again(tmp_path: Path, durability: str) -> None:
    figures, picture, blocks = tmp_path / "figures.json", tmp_path / "hits.png", tmp_path / "blocks"
    command = ("replay", *SMALL, "--fs-dir", blocks, "--settle", "--concurrency", "1", "--durability", durability)
    assert _run(*command).exit_code == 0
    assert _run(*command, "--json", figures, "--plot", picture).exit_code == 0
    report = json.loads(figures.read_text())
    assert report["hits"]["computed"] == 0
    assert report["hits"]["fs"] > 0
    assert report["set_up"]["policy"] == "lru"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_figures_as_output() -> None:
    run = _run("replay", *SMALL, "--json", "-")
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["served"] == 20


@pytest.mark.parametrize("command", [["replay"], ["bench", "device"], ["bench", "fs", "."]], ids=" ".join)
def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(
    command: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = _run(*command, "--plot", "x.png")
    assert run.exit_code == 2
    assert "a picture needs matplotlib: pip install 'asyncoffload[cli]'" in " ".join(run.output.split())


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "asyncoffload", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"asyncoffload {version('asyncoffload')}\n"


def test_wrong_bytes_are_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncoffload.cli.blockbytes.BlockBytes.count_wrong", lambda *_: 3)
    run = _run("replay", *SMALL)
    assert run.exit_code == 1
    assert "bytes wrong" in run.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-bytes", "lots"], "'lots' is not a size: write bytes"),
        (["--block-bytes", "0"], "'0' is not more than 0 bytes"),
        (["--block-bytes", "100"], "a block of 100 bytes is not a positive multiple of 32"),
        (["--host-bytes", "64"], "does not hold one block"),
        (["--policy", "random"], "policy 'random' is unknown"),
        (["--fs-threads", "many"], "'many' is neither a number of threads nor auto"),
        (["--device-blocks", "3"], "blocks, the device 3: give it more blocks"),
        (["--fs-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--fs-dir", ""], "the name is empty, as a variable is that was not set"),
        (["--fs-dir", "/dev/null"], "'/dev/null' is not a directory"),
        (["--json", "x" * 300 + "/x.json"], "cannot be looked at: File name too long"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory: make it first"),
        (["nowhere.jsonl"], "nowhere.jsonl: the trace cannot be read"),
    ],
)
def test_bad_input_is_named(arguments: Sequence[str], message: str) -> None:
    run = _run("replay", *SMALL, *arguments)
    assert run.exit_code == 2
    assert message in " ".join(run.output.replace("│", " ").split())


def _heed_interrupts() -> None:
    """A shell that runs the tests in the background has them, and all they start, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_interrupt_ends_with_the_table_so_far(tmp_path: Path, loop: str) -> None:
    command = "from asyncoffload.cli import main; main()"
    arguments = ["replay", "--requests", "50", "--speed", "0.5", "--loop", loop]
    environment = os.environ | {"TMPDIR": str(tmp_path), "FORCE_COLOR": "1", "COLUMNS": "200"}
    run = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=_heed_interrupts,
    )
    assert run.stderr is not None
    shown = b""
    while b" 1/50" not in shown:  # the progress bar, drawn anew a few times a second
        chunk = os.read(run.stderr.fileno(), 4096)
        assert chunk, shown.decode()
        shown += chunk
    run.send_signal(signal.SIGINT)
    output, complaints = run.communicate(timeout=60)
    assert run.returncode == 130, complaints.decode()
    assert "of 50 in" in output.decode()
    assert list(tmp_path.iterdir()) == []
