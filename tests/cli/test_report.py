"""A report adds up, and its table and picture can be made of whatever there was."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from asyncoffload.cli.plot import save_plot
from asyncoffload.cli.report import Account, Distribution, Report, Served, TierAccount, report_of
from asyncoffload.cli.table import table_of
from asyncoffload.errors import InvalidArgument
from asyncoffload.types import Status

SERVED = [
    Served(finished=1.0, blocks=10, hits={"CPU": 4, "fs": 3}, load_seconds=0.010, stored=3),
    Served(finished=2.0, blocks=10, hits={}, stored=8, shed=2),
    Served(finished=2.0, blocks=0),
    Served(finished=4.0, blocks=5, hits={"fs": 2}, load_seconds=0.030, wrong_bytes=7, stopped_by=Status.TIMED_OUT),
]


def _report(served: list[Served]) -> Report:
    return report_of(
        served,
        requests=6,
        block_bytes=1 << 20,
        seconds=4.0,
        cpu_seconds=2.0,
        lag=[0.001] * 99 + [0.5],
        account=Account(evicted=6, lost=1, tiers={"fs": TierAccount(promoted=5, cascaded=11, shed=1, corrupt=2)}),
        primary="CPU",
        set_up={"loop": "uvloop"},
    )


def _text(report: Report) -> str:
    console = Console(width=200, file=StringIO())
    console.print(table_of(report))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_figures_add_up() -> None:
    report = _report(SERVED)
    assert report.blocks == 25
    assert report.hits == {"CPU": 4, "fs": 5, "computed": 16}
    assert report.verified == 9
    assert {way: flow.blocks for way, flow in report.flows.items()} == {
        "device -> CPU": 11,
        "CPU -> device": 9,
        "CPU -> fs": 11,
        "fs -> CPU": 5,
    }
    assert report.flows["fs -> CPU"].bytes_per_second == 5 * (1 << 20) / 4.0
    assert report.load.p50 == pytest.approx(0.020)
    assert (report.load.count, report.load.max) == (2, 0.030)
    assert report.cut_short == {"timed_out": 1}


def test_the_table_shows_every_figure() -> None:
    text = _text(_report(SERVED))
    for shown in (
        "4 of 6 in 4.0 s",
        "25 of 1.0MiB",
        "9 blocks, 7 bytes wrong",
        "CPU 16.0%  fs 20.0%  computed 64.0%",
        "p50 1.00 ms",
        "max 500.00 ms",
        "6 blocks, 1 of them in no tier",
        "CPU 2  fs 1",
        "2 corrupt, 0 failed",
        "timed_out 1",
    ):
        assert shown in text, text


def test_a_report_is_json() -> None:
    assert json.loads(json.dumps(asdict(_report(SERVED))))["hits"]["fs"] == 5


@pytest.mark.parametrize("served", [SERVED, SERVED[1:3], []], ids=["all", "no loads", "nothing"])
def test_a_picture_can_be_made_of_anything(tmp_path: Path, served: list[Served]) -> None:
    picture = tmp_path / "hits.png"
    save_plot(picture, _report(served), served)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "blocks" in _text(_report(served))


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"hits.png: the plot cannot be written: .*No such file"):
        save_plot(tmp_path / "nowhere" / "hits.png", _report([]), [])


def test_no_samples_are_zeros() -> None:
    assert Distribution.of([]) == Distribution(0, 0.0, 0.0, 0.0)
