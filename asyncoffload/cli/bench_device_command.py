"""The ``bench device`` command: from its options to its exit status."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asyncoffload.cli.arguments import STDOUT
from asyncoffload.cli.device_bench.cpu_side import CPUSide
from asyncoffload.cli.device_bench.effort import effort_for
from asyncoffload.cli.device_bench.figures import DeviceReport, Section
from asyncoffload.cli.device_bench.running import MEASUREMENTS, Measurement, run_measurement
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.table import table_of
from asyncoffload.cli.results import ALL_WELL, INTERRUPTED, SOMETHING_WRONG, ended, progress, show, written
from asyncoffload.cli.still_heap import still_heap
from asyncoffload.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchDeviceCommand:
    """The options of one invocation; ``asyncoffload bench device --help`` explains each."""

    device: str
    copy_threads: int
    quick: bool
    only: Sequence[str]
    json: Path | None
    plot: Path | None

    def run(self) -> int:
        """Measure, print the table, write the files; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        wanted = self._wanted()
        side = open_side(self.device, copy_threads=self.copy_threads)
        try:
            return self._measure(side, wanted)
        finally:
            side.close()

    def _wanted(self) -> Sequence[Measurement]:
        known = {measurement.key: measurement for measurement in MEASUREMENTS}
        for key in self.only:
            if key not in known:
                raise InvalidArgument(f"there is no measurement {key!r}: choose among {', '.join(known)}")
        return [known[key] for key in self.only or known]

    def _measure(self, side: Side, wanted: Sequence[Measurement]) -> int:
        sections: list[Section] = []
        machine = {**side.facts(), "gc": "frozen after start"}
        interrupted = False
        with still_heap(), progress(len(wanted), "measuring") as advance:

            def done(section: Section) -> None:
                sections.append(section)
                advance()
                self._write_json(DeviceReport(machine, tuple(sections)))

            def so_far(section: Section) -> None:
                self._write_json(DeviceReport(machine, (*sections, section)))

            try:
                effort = effort_for(side.kind, quick=self.quick)
                for measurement in wanted:
                    advance(measurement.title, 0)
                    run_measurement(side, effort, measurement, done, so_far)
            except KeyboardInterrupt:
                interrupted = True
        report = DeviceReport(machine, tuple(sections))
        show(report.as_json(), lambda: table_of(report), self.json)
        if self.plot is not None:
            from asyncoffload.cli.device_bench.plot import save_plot

            save_plot(self.plot, report)
        if interrupted:
            return INTERRUPTED
        return SOMETHING_WRONG if any(section.error for section in sections) else ALL_WELL

    def _write_json(self, report: DeviceReport) -> None:
        if self.json is None or self.json == STDOUT:
            return
        with written(self.json, "figures"):
            if not _may_be_replaced(self.json):
                return
            unfinished = self.json.with_name(f"{self.json.name}.{os.getpid()}.tmp")
            try:
                unfinished.write_text(json.dumps(report.as_json(), indent=2) + "\n")
                unfinished.replace(self.json)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise


def _may_be_replaced(path: Path) -> bool:
    """Whether a file may be put in this place; into what else is there, the figures are written once, at the end."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def open_side(device: str, *, copy_threads: int) -> Side:
    """The device to measure on: ``"cuda"``, ``"cpu"``, or ``"auto"`` for CUDA where there is a device.

    Args:
        copy_threads: threads that copy where that is the CPU.

    Raises:
        InvalidArgument: CUDA was asked for, and torch finds none.
        DeviceError: the driver cannot be used.
    """
    has_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InvalidArgument("torch finds no CUDA device here: leave --device out to measure on the CPU")
    if not has_cuda:
        return CPUSide(copy_threads)
    from asyncoffload.cli.device_bench.cuda_board import TorchBoard
    from asyncoffload.cli.device_bench.cuda_side import CudaSide

    return CudaSide(TorchBoard())
