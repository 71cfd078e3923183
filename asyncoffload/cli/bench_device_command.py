"""The ``bench device`` command: from its options to its exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asyncoffload.cli.device_bench.cpu_side import CPUSide
from asyncoffload.cli.device_bench.effort import effort_for
from asyncoffload.cli.device_bench.figures import DeviceReport, Section
from asyncoffload.cli.device_bench.running import MEASUREMENTS, Measurement, run_measurement
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.table import table_of
from asyncoffload.cli.still_heap import still_heap
from asyncoffload.errors import InternalError, InvalidArgument, OffloadError

ALL_MEASURED, NOT_ALL_MEASURED, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130


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
        complaints = Console(stderr=True)
        try:
            wanted = self._wanted()
            side = open_side(self.device, copy_threads=self.copy_threads)
            try:
                return self._measure(side, wanted)
            finally:
                side.close()
        except (OffloadError, InternalError) as error:
            complaints.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return COULD_NOT_RUN

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
        with still_heap(), _progress(len(wanted)) as bar:
            task = bar.task_ids[0]

            def done(section: Section) -> None:
                sections.append(section)
                bar.advance(task)
                self._write_json(DeviceReport(machine, tuple(sections)))

            def so_far(section: Section) -> None:
                self._write_json(DeviceReport(machine, (*sections, section)))

            try:
                effort = effort_for(side.kind, quick=self.quick)
                for measurement in wanted:
                    bar.update(task, description=measurement.title)
                    run_measurement(side, effort, measurement, done, so_far)
            except KeyboardInterrupt:
                interrupted = True
        report = DeviceReport(machine, tuple(sections))
        Console().print(table_of(report))
        if self.plot is not None:
            from asyncoffload.cli.device_bench.plot import save_plot

            save_plot(self.plot, report)
        if interrupted:
            return INTERRUPTED
        return NOT_ALL_MEASURED if any(section.error for section in sections) else ALL_MEASURED

    def _write_json(self, report: DeviceReport) -> None:
        if self.json is None:
            return
        unfinished = self.json.with_name(f"{self.json.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(json.dumps(report.as_json(), indent=2) + "\n")
            unfinished.replace(self.json)
        except OSError as error:
            raise InvalidArgument(f"{self.json}: the figures cannot be written: {error}") from error


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


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        bar.add_task("", total=total)
        yield bar
