"""``bench fs``: figures add up, every byte is compared, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncoffload.cli.fs_bench.figures import Flow, FSReport, Latency, SizeFigures
from asyncoffload.cli.fs_bench.measuring import Effort, SizeBench, clear
from asyncoffload.cli.fs_bench.memory import BenchMemory
from asyncoffload.cli.fs_bench.plot import save_plot
from asyncoffload.cli.fs_bench.raw import BareThreads, RawFiles
from asyncoffload.cli.fs_bench.table import table_of
from asyncoffload.errors import InvalidArgument
from tests.cli.real_root import run, words

SMALL = ("--sizes", "8KiB,16KiB", "--bytes", "128KiB", "--rounds", "1", "--io-threads", "2")
FLOW = Flow.of(2_000_000_000, [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], 8, Latency(1.0, 2.0), Latency(0.5, 0.6))
SIZE = SizeFigures(65536, 16, 4, True, 3, {"store": FLOW, "load": FLOW}, 0)


def test_a_flow_is_the_median_of_its_rounds() -> None:
    assert (FLOW.speed, FLOW.raw_speed) == (1.0, 2.0)
    assert FLOW.ratio == (0.375, 0.5, 0.75)
    assert Latency.of([0.001, 0.002, 0.003]).p50 == 2.0


def test_the_names_of_the_figures() -> None:
    report: dict[str, Any] = FSReport("/x", {"file system": "ext4"}, (SIZE,)).as_json()
    assert set(report) == {"root", "machine", "interrupted", "wrong_blocks", "sizes"}
    (size,) = report["sizes"]
    assert set(size) == {
        "block_bytes",
        "blocks",
        "io_threads",
        "direct_io",
        "rounds",
        "wrong_blocks",
        "store",
        "load",
    }
    assert set(size["load"]) == {
        "GBps",
        "raw_GBps",
        "ratio",
        "ratio_quartiles",
        "raw_threads",
        "latency_ms",
        "raw_latency_ms",
    }
    assert set(size["load"]["latency_ms"]) == {"p50", "p99"}


def test_a_run_prints_a_table_and_leaves_nothing(tmp_path: Path) -> None:
    figures, picture, place = tmp_path / "figures.json", tmp_path / "disk.png", tmp_path / "disk"
    place.mkdir()
    result = run("bench", "fs", place, *SMALL, "--json", figures, "--plot", picture)
    assert result.exit_code == 0, result.output
    for text in ("8.0KiB", "16.0KiB", "store", "load", "every byte right", "2 + 2 I/O threads"):
        assert text in result.output
    report = json.loads(figures.read_text())
    assert [size["block_bytes"] for size in report["sizes"]] == [8192, 16384]
    assert [size["blocks"] for size in report["sizes"]] == [16, 8]
    for size in report["sizes"]:
        for way in ("store", "load"):
            assert size[way]["GBps"] > 0
            assert size[way]["ratio_quartiles"][0] <= size[way]["ratio"] <= size[way]["ratio_quartiles"][1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(place) == []


def test_without_direct_io_it_says_what_is_measured(tmp_path: Path) -> None:
    result = run("bench", "fs", tmp_path, *SMALL, "--direct-io", "off")
    assert result.exit_code == 0
    assert "from the page cache, not from the disk" in words(result)


def test_wrong_bytes_are_an_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BenchMemory, "wrong_slots", lambda _: 3)
    result = run("bench", "fs", tmp_path, *SMALL)
    assert result.exit_code == 1
    assert "6 blocks wrong" in result.output
    assert os.listdir(tmp_path) == []


def test_an_interrupt_keeps_the_sizes_that_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = SizeBench.run

    def interrupted(self: SizeBench, progress: object) -> SizeFigures:
        if self._block_bytes > 8192:
            raise KeyboardInterrupt
        return measure(self, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(SizeBench, "run", interrupted)
    result = run("bench", "fs", tmp_path, *SMALL, "--json", "-")
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert (report["interrupted"], len(report["sizes"])) == (True, 1)
    assert os.listdir(tmp_path) == []


def test_slots_that_were_not_read_are_wrong() -> None:
    memory = BenchMemory(3, 4096)
    assert memory.wrong_slots() == 0
    assert len({bytes(slot) for slot in memory.slots(range(3))}) == 3
    memory.wipe()
    assert memory.wrong_slots() == 3


def test_memory_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("asyncoffload.cli.fs_bench.memory.mmap.mmap", refuse)
    result = run("bench", "fs", tmp_path, *SMALL)
    assert result.exit_code == 2
    assert "128.0KiB of memory cannot be had (Cannot allocate memory): choose a smaller --bytes" in words(result)


def test_each_size_cleans_up(tmp_path: Path) -> None:
    effort = Effort(nbytes=65536, rounds=1, io_threads="auto", direct_io="auto")
    steps = []
    figures = SizeBench(str(tmp_path), 8192, effort).run(lambda: steps.append(1))
    assert (len(steps), figures.wrong_blocks) == (effort.steps, 0)
    clear(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_bare_threads_stop_at_their_limit_and_at_a_refusal(tmp_path: Path) -> None:
    payloads = [memoryview(bytes(8192))] * 4
    paths = [str(tmp_path / str(index)) for index in range(4)]
    raw = RawFiles(direct=False)
    assert BareThreads(2, raw.write, paths, payloads).join().nbytes == 4 * 8192
    assert BareThreads(2, raw.write, paths, payloads, limit=0.0).join().nbytes == 0
    with pytest.raises(FileNotFoundError):
        BareThreads(2, raw.read, [str(tmp_path / "nowhere")], payloads[:1]).join()
    with pytest.raises(OSError, match="moved") as short:
        BareThreads(1, raw.read, paths[:1], [memoryview(bytearray(1 << 16))]).join()
    assert short.value.errno == errno.EIO


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the plot cannot be written"):
        save_plot(tmp_path / "nowhere" / "x.png", FSReport("/x", {}, (SIZE,)))


def test_an_interrupt_before_the_first_size(tmp_path: Path) -> None:
    save_plot(tmp_path / "x.png", FSReport("/x", {}, (), interrupted=True))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=200, file=StringIO())
    console.print(table_of(FSReport("/x", {}, (), interrupted=True)))
    assert "interrupted" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "1000"], "a block of 1000 bytes is not a multiple of 4096"),
        (["--sizes", "8KiB,many"], "'many' is not a size"),
        (["--sizes", ""], "'' is not a size"),
        (["--bytes", "900TiB"], "free: choose a smaller --bytes"),
        (["--io-threads", "few"], "'few' is neither a number of threads nor auto"),
        (["--plot", "/nowhere/x.png"], "/nowhere is not a directory: make it first"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("bench", "fs", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)
    assert os.listdir(tmp_path) == []


def test_threads_that_were_interrupted_while_they_started_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    paths = [str(tmp_path / str(index)) for index in range(1000)]
    with pytest.raises(KeyboardInterrupt):
        BareThreads(3, RawFiles(direct=False).write, paths, [memoryview(bytes(8192))] * 1000)
    assert [thread.is_alive() for thread in started] == [False]
