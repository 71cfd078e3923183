"""The benchmark of a device: its figures add up, its bytes are compared, and one row that fails is one row."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from asyncoffload.cli import bench_device_command
from asyncoffload.cli.app import app
from asyncoffload.cli.device_bench import aims
from asyncoffload.cli.device_bench.blocks import blocks_of, mover_of
from asyncoffload.cli.device_bench.cpu_side import CPUSide
from asyncoffload.cli.device_bench.effort import KIB, MIB, Effort, effort_for
from asyncoffload.cli.device_bench.figures import RATIO, Aim, DeviceReport, Figure, Section, WrongBytesError, size_name
from asyncoffload.cli.device_bench.plot import save_plot
from asyncoffload.cli.device_bench.running import MEASUREMENTS, Measurement, run_measurement
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.table import markdown_of, table_of
from asyncoffload.cli.device_bench.timing import Pairs
from asyncoffload.errors import InvalidArgument
from tests.cli.tiny_effort import TINY

REPORT = DeviceReport(
    {"device": "a device"},
    (
        Section(
            "speed",
            "Speed",
            (
                Figure.of(
                    "load, pages of 64 KiB",
                    [0.9, 0.95, 1.0],
                    RATIO,
                    aim=Aim(0.92),
                    notes={"raw_GBps": 55.0, "why": "x|y"},
                ),
                Figure.of("store, pages of 64 KiB", [0.5], RATIO, aim=Aim(0.92)),
            ),
            seconds=1.5,
        ),
        Section("latency", "Latency", (Figure.of("p99", [1.0, 2.0, 300.0], "us", aim=Aim(150, at_least=False)),)),
        Section("pinning", "Pinning", skipped="nothing to pin"),
        Section("layers", "Layers", error="DeviceError: [gone]"),
        Section(
            "engines",
            "Engines",
            (Figure.of("load, 4 KiB x 64", [1.0], RATIO, notes={"chosen": "kernel", "kernel_GBps": 30.0}),),
        ),
    ),
)


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "device", *map(str, arguments)], env={"COLUMNS": "200"})


def _text(report: DeviceReport) -> str:
    console = Console(width=200, file=StringIO())
    console.print(table_of(report))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_device_command, "effort_for", lambda *_, **__: TINY)


# Figures


def test_a_figure_is_the_median_with_its_quartiles() -> None:
    figure = Figure.of("x", [4.0, 1.0, 2.0, 3.0, 5.0], RATIO, aim=Aim(3.0))
    assert (figure.value, figure.quartiles, figure.met) == (3.0, (2.0, 4.0), True)


def test_another_quantile_has_no_quartiles() -> None:
    figure = Figure.of("x", list(map(float, range(101))), "us", quantile=0.99, aim=Aim(98.0, at_least=False))
    assert (figure.value, figure.quartiles, figure.met) == (99.0, None, False)


def test_a_report_comes_back_from_json() -> None:
    assert DeviceReport.from_json(json.loads(json.dumps(REPORT.as_json()))) == REPORT


def test_pairs_are_ratios_to_the_reference_in_alternating_order() -> None:
    order: list[str] = []
    pairs = Pairs(lambda: order.append("ours"), lambda: order.append("reference"))
    for _ in range(2):
        pairs.measure()
    assert order == ["ours", "reference", "reference", "ours"]
    assert len(pairs.ratios) == 2


@pytest.mark.parametrize(
    ("kind", "page_bytes", "bound"),
    [("cuda", MIB, 0.92), ("cuda", 64 * KIB, 0.92), ("cuda", 16 * KIB, 0.8), ("cuda", 4 * KIB, 0.5), ("cpu", MIB, 0.8)],
)
def test_speed_has_its_aim(kind: str, page_bytes: int, bound: float) -> None:
    assert aims.speed(kind, page_bytes) == Aim(bound)


def test_small_pages_on_the_cpu_are_reported_only() -> None:
    assert aims.speed("cpu", 16 * KIB) is None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_quick_is_less(kind: str) -> None:
    full, quick = effort_for(kind, quick=False), effort_for(kind, quick=True)
    assert quick.rounds < full.rounds
    assert quick.samples < full.samples
    assert set(quick.fragments) < set(full.fragments)


def test_rounds_end_with_their_time_but_there_are_three() -> None:
    assert list(TINY.paced()) == [0, 1, 2]


@pytest.mark.parametrize(("nbytes", "name"), [(8, "8 B"), (4096, "4 KiB"), (3 << 20, "3 MiB"), (1000, "1000 B")])
def test_sizes_have_names(nbytes: int, name: str) -> None:
    assert size_name(nbytes) == name


# The table and the picture


def test_the_table_shows_every_figure() -> None:
    text = _text(REPORT)
    for shown in (
        "a device",
        "0.950x",
        "0.925 to 0.975",
        ">= 0.92",
        "raw 55.00 GB/s",
        "2.00 µs",
        "<= 150",
        "skipped: nothing to pin",
        "failed: DeviceError: [gone]",
        "chosen: kernel",
    ):
        assert shown in text, text


def test_the_markdown_is_one_table() -> None:
    lines = markdown_of(REPORT).splitlines()
    assert lines[0] == "device a device."
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert any("x/y" in line for line in lines)


@pytest.mark.parametrize("report", [REPORT, DeviceReport({}, ())], ids=["some", "nothing"])
def test_a_picture_can_be_made_of_anything(tmp_path: Path, report: DeviceReport) -> None:
    save_plot(tmp_path / "device.png", report)
    assert (tmp_path / "device.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"device.png: the plot cannot be written: .*No such file"):
        save_plot(tmp_path / "nowhere" / "device.png", REPORT)


# The bytes


def test_moved_bytes_pass() -> None:
    with blocks_of(CPUSide(), page_bytes=64, n_blocks=3) as blocks, mover_of(blocks) as mover:
        mover.both()
        blocks.check("store", "load")


@pytest.mark.parametrize("direction", ["store", "load"])
def test_bytes_that_were_not_moved_are_found(direction: str) -> None:
    with (
        blocks_of(CPUSide(), page_bytes=64, n_blocks=3) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.both()
        blocks.poison()
        mover.move("load" if direction == "store" else "store")
        with pytest.raises(WrongBytesError, match=r"bytes that (stor|load)ed are wrong"):
            blocks.check("store", "load")


def test_one_wrong_byte_is_found() -> None:
    with blocks_of(CPUSide(), page_bytes=64, n_blocks=3) as blocks, mover_of(blocks) as mover:
        mover.move("load")
        blocks.caches[7][int(blocks.loaded_blocks[1]), 5] ^= 1
        with pytest.raises(WrongBytesError, match=r"^1 of 6,144 bytes"):
            blocks.check("load")


def test_a_write_to_where_nothing_should_be_written_is_found() -> None:
    with (
        pytest.raises(WrongBytesError, match="a store read"),
        blocks_of(CPUSide(), page_bytes=64, n_blocks=3) as blocks,
    ):
        blocks.caches[0][int(blocks.stored_blocks[0]), 0] ^= 1


# The measurements


def _section(measurement: Measurement, side: Side) -> Section:
    sections: list[Section] = []
    run_measurement(side, TINY, measurement, sections.append)
    (section,) = sections
    return section


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda measurement: measurement.key)
def test_every_measurement_runs_on_the_cpu(measurement: Measurement) -> None:
    section = _section(measurement, CPUSide())
    assert not section.error
    assert bool(section.figures) != bool(section.skipped)
    for figure in section.figures:
        assert (figure.met is None) == (figure.aim is None)


@pytest.mark.parametrize("error", [WrongBytesError("3 bytes"), RuntimeError("no device"), MemoryError("no memory")])
def test_a_case_that_fails_leaves_the_others_and_its_figures(error: Exception) -> None:
    def measure(side: Side, effort: Effort, case: int) -> Iterator[Figure]:
        yield Figure.of(f"{side.kind}, {effort.rounds} rounds, {case}", [1.0], "ms")
        if case == 1024:
            raise error

    section = _section(Measurement("bad", "Bad", measure, lambda _: (1024, 2048)), CPUSide())
    assert section.error == f"1 KiB: {type(error).__name__}: {error}"
    assert [figure.name for figure in section.figures] == ["cpu, 3 rounds, 1024", "cpu, 3 rounds, 2048"]
    assert section.wrong_bytes == isinstance(error, WrongBytesError)


def test_what_there_is_can_be_kept_before_each_case() -> None:
    def measure(side: Side, effort: Effort, case: str) -> Iterator[Figure]:
        yield Figure.of(f"{side.kind}, {effort.rounds} rounds, {case}", [1.0], "ms")

    sections: list[Section] = []
    measurement = Measurement("m", "M", measure, lambda _: ("first", "second"))
    run_measurement(CPUSide(), TINY, measurement, sections.append, sections.append)
    assert [section.error for section in sections] == ["first: unfinished", "second: unfinished", ""]
    assert [len(section.figures) for section in sections] == [0, 1, 2]


# The command


def test_the_command_prints_a_table_and_writes_its_files(tmp_path: Path, tiny: None) -> None:  # noqa: ARG001
    figures, picture = tmp_path / "figures.json", tmp_path / "device.png"
    run = _run("--device", "cpu", "--only", "speed", "--only", "pinning", "--json", figures, "--plot", picture)
    assert run.exit_code == 0, run.output
    for text in ("load, pages of 64 KiB", "against: memcpy", "skipped: host memory needs no pinning"):
        assert text in run.output
    report = DeviceReport.from_json(json.loads(figures.read_text()))
    assert [section.key for section in report.sections] == ["speed", "pinning"]
    assert "processors" in report.machine["device"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [picture, figures]


def test_figures_as_output(tiny: None) -> None:  # noqa: ARG001
    run = _run("--device", "cpu", "--only", "submission", "--json", "-")
    assert run.exit_code == 0, run.output
    assert [section.key for section in DeviceReport.from_json(json.loads(run.stdout)).sections] == ["submission"]


def test_what_is_no_plain_file_is_written_into(tmp_path: Path, tiny: None) -> None:  # noqa: ARG001
    link, target, pipe = tmp_path / "link", tmp_path / "target", tmp_path / "pipe"
    link.symlink_to(target)
    target.touch()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, pipe):
        run = _run("--device", "cpu", "--only", "submission", "--json", path)
        assert run.exit_code == 0, run.output
    assert link.is_symlink()
    assert pipe.is_fifo()
    for text in (target.read_text(), os.read(reader, 1 << 16).decode()):
        assert DeviceReport.from_json(json.loads(text)).sections
    os.close(reader)
    assert sorted(tmp_path.iterdir()) == [link, pipe, target]


def test_figures_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refuse)
    run = _run("--device", "cpu", "--only", "submission", "--json", tmp_path / "figures.json")
    assert run.exit_code == 2
    assert "the figures cannot be written" in run.output
    assert list(tmp_path.iterdir()) == []


def test_one_failing_row_is_an_exit_status(monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:  # noqa: ARG001
    def fail(side: Side, effort: Effort, _: None) -> Iterator[Figure]:
        raise RuntimeError(f"no such {side.kind} after {effort.rounds} rounds")

    rows = (Measurement("bad", "Bad", fail), next(row for row in MEASUREMENTS if row.key == "submission"))
    monkeypatch.setattr(bench_device_command, "MEASUREMENTS", rows)
    run = _run("--device", "cpu")
    assert run.exit_code == 1, run.output
    assert "failed: RuntimeError: no such cpu" in run.output
    assert "1,024 blocks x 32 layers of 8 B" in run.output


def test_an_interrupt_ends_with_the_figures_so_far(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny: None,  # noqa: ARG001
) -> None:
    def interrupted(side: Side, effort: Effort, _: None) -> Iterator[Figure]:
        yield Figure.of(f"the {side.kind}, {effort.rounds} rounds", [1.0], "ms")
        raise KeyboardInterrupt

    rows = (Measurement("cut", "Cut", interrupted), *MEASUREMENTS)
    monkeypatch.setattr(bench_device_command, "MEASUREMENTS", rows)
    run = _run("--device", "cpu", "--json", tmp_path / "figures.json")
    assert run.exit_code == 130
    assert "the cpu, 3 rounds" in run.output
    assert "interrupted" in (tmp_path / "figures.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speeed"], "there is no measurement 'speeed': choose among speed, both"),
        (["--device", "tpu"], "'tpu' is not one of"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory: make it first"),
        (["--json", ""], "is a directory"),
    ],
)
def test_bad_input_is_named(arguments: Sequence[str], message: str) -> None:
    run = _run(*arguments)
    assert run.exit_code == 2
    assert message in " ".join(run.output.replace("│", " ").split())


def test_cuda_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = _run("--device", "cuda")
    assert run.exit_code == 2
    assert "torch finds no CUDA device here" in run.output


def test_help_names_every_measurement() -> None:
    text = _run("--help").output
    for measurement in MEASUREMENTS:
        assert measurement.key in text
