"""How the process of a command ends: told to, with nobody who reads, on a narrow standard output, by a defect."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.cli.results import ended
from asyncoffload.errors import InvalidArgument
from tests.cli.real_root import flip, keys_of, path_of, store

COMMAND = [sys.executable, "-m", "asyncoffload"]


def _heed_signals() -> None:
    """Whoever runs the tests in the background may have them, and all they start, ignore these."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _ignore_interrupts() -> None:
    """As a shell does with what it starts in the background."""
    _heed_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_once_shown(arguments: Sequence[str | Path], text: bytes, number: int, **options: object) -> tuple[int, str]:
    """Send a signal once the progress bar says ``text``; the exit status, and what was printed."""
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "200", "TMPDIR": str(options.pop("tmpdir", "/tmp"))}
    told = {"preexec_fn": _heed_signals, **options}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **told,  # type: ignore[call-overload]
    )
    shown = b""
    while text not in shown:
        chunk = os.read(process.stderr.fileno(), 4096)
        assert chunk, shown.decode()
        shown += chunk
    process.send_signal(number)
    output, complaints = process.communicate(timeout=60)
    assert b"Traceback" not in complaints, complaints.decode()
    return process.returncode, output.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_told_to_end_cleans_up(tmp_path: Path, number: int) -> None:
    status, output = _end_once_shown(["doctor", tmp_path, "--seconds", "30"], b"speed", number)
    assert status == 128 + number
    assert "interrupted" in output
    assert os.listdir(tmp_path) == []


def test_a_benchmark_that_is_told_to_end_cleans_up(tmp_path: Path) -> None:
    arguments = ["bench", "fs", str(tmp_path), "--sizes", "4KiB", "--bytes", "1MiB", "--rounds", "100000"]
    status, output = _end_once_shown(arguments, b"1/100001", signal.SIGTERM)
    assert (status, "interrupted" in output) == (143, True)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("started", [_heed_signals, _ignore_interrupts], ids=["as usual", "in the background"])
def test_a_replay_that_is_told_to_end_cleans_up(tmp_path: Path, loop: str, started: object) -> None:
    arguments = ["replay", "--requests", "50", "--speed", "2", "--loop", loop, "--block-bytes", "4KiB"]
    status, output = _end_once_shown(arguments, b" 1/50", signal.SIGTERM, tmpdir=tmp_path, preexec_fn=started)
    assert status == 143
    assert "of 50 in" in output
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv[1:] = ['--version']\n"
        "from asyncoffload.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("True\n")


def test_an_interrupt_that_python_drops_comes_again() -> None:
    code = (
        "import signal, weakref\n"
        "from asyncoffload.cli.signals import EndSignals\n"
        "signals, thing = EndSignals(), {0}\n"
        "watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))\n"
        "try:\n"
        "    del thing\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    print(signals.status(130))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=_heed_signals
    )
    assert (process.stdout, process.stderr) == ("143\n", "")


@pytest.mark.parametrize("extra", [[], ["--json", "-"]])
def test_a_reader_that_leaves_ends_it_as_any_tool(tmp_path: Path, extra: Sequence[str]) -> None:
    store(tmp_path, keys_of(2))
    nobody, pipe = os.pipe()
    os.close(nobody)
    process = subprocess.run([*COMMAND, "verify", tmp_path, *extra], stdout=pipe, stderr=subprocess.PIPE, check=False)
    os.close(pipe)
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b"")


def test_figures_are_written_though_nobody_reads_the_table(tmp_path: Path) -> None:
    store(tmp_path / "root", keys_of(2))
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*COMMAND, "verify", tmp_path / "root", "--json", tmp_path / "x.json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 2
    assert "standard output cannot be written: " in process.stderr
    assert "Traceback" not in process.stderr
    assert (tmp_path / "x.json").read_text().startswith("{")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_narrow_output_gets_what_it_can_show(tmp_path: Path, encoding: str) -> None:
    keys = keys_of(3)
    store(tmp_path, keys)
    flip(path_of(tmp_path, keys[0]), 4100)
    for command in (["inspect"], ["verify"], ["doctor", "--no-measure"]):
        process = subprocess.run(
            [*COMMAND, *command, tmp_path],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert process.returncode in (0, 1), process.stderr.decode()
        assert process.stderr == b""
        assert tmp_path.name.encode() in process.stdout


def test_without_a_terminal_a_progress_bar_says_nothing(tmp_path: Path) -> None:
    store(tmp_path, keys_of(2))
    for command in ("gc", "verify", "inspect"):
        process = subprocess.run([*COMMAND, command, tmp_path], capture_output=True, check=True)
        assert process.stderr == b""


def test_a_defect_is_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise ZeroDivisionError("[oops]")

    assert ended(work) == 2
    complaints = capsys.readouterr().err
    assert "Traceback" in complaints
    assert "ZeroDivisionError: [oops]" in complaints
    assert "a defect of asyncoffload: please report it" in " ".join(complaints.split())


def test_each_failure_of_a_group_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")
        raise ExceptionGroup("g", [InvalidArgument("a"), ExceptionGroup("h", [InvalidArgument("a"), refusal])])

    assert ended(work) == 2
    assert capsys.readouterr().err == "error: a\nerror: /x: No space left on device\n"


def test_too_little_memory_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise MemoryError

    assert ended(work) == 2
    assert capsys.readouterr().err.startswith("error: there is not enough memory")
