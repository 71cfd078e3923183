"""The ``bench fs`` command: from its options to its exit status."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from asyncoffload.cli.fs_bench.figures import FSReport, SizeFigures
from asyncoffload.cli.fs_bench.measuring import SINGLE_BLOCKS, Effort, SizeBench, clear
from asyncoffload.cli.fs_bench.table import table_of
from asyncoffload.cli.own_directory import own_directory
from asyncoffload.cli.results import ALL_WELL, INTERRUPTED, SOMETHING_WRONG, ended, progress, show, size_text
from asyncoffload.cli.still_heap import still_heap
from asyncoffload.errors import InvalidArgument
from asyncoffload.tiers.fs.format import PAGE, file_bytes
from asyncoffload.tiers.fs.mounts import mount_of
from asyncoffload.tiers.fs.space import DirectIO


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFSCommand:
    """The options of one invocation; ``asyncoffload bench fs --help`` explains each."""

    root: Path
    sizes: Sequence[int]
    nbytes: int
    rounds: int
    io_threads: int | str
    direct_io: str
    json: Path | None
    plot: Path | None

    def run(self) -> int:
        """Measure, print the table, write the files; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        sizes = sorted(set(self.sizes))
        self._check(sizes)
        effort = Effort(
            nbytes=self.nbytes,
            rounds=self.rounds,
            io_threads=self.io_threads,
            direct_io=cast("DirectIO", self.direct_io),
        )
        measured: list[SizeFigures] = []
        interrupted = False
        try:
            with (
                own_directory(str(self.root), "bench") as place,
                still_heap(),
                progress(effort.steps * len(sizes), "measuring") as advance,
            ):
                for block_bytes in sizes:
                    advance(size_text(block_bytes), 0)
                    measured.append(SizeBench(place, block_bytes, effort).run(advance))
                    clear(place)
        except KeyboardInterrupt:
            interrupted = True
        report = FSReport(str(self.root), self._machine(), measured, interrupted)
        show(report.as_json(), lambda: table_of(report), self.json)
        if self.plot is not None:
            from asyncoffload.cli.fs_bench.plot import save_plot

            save_plot(self.plot, report)
        if interrupted:
            return INTERRUPTED
        return SOMETHING_WRONG if report.wrong_blocks else ALL_WELL

    def _check(self, sizes: Sequence[int]) -> None:
        for block_bytes in sizes:
            if block_bytes % PAGE:
                raise InvalidArgument(f"a block of {block_bytes} bytes is not a multiple of {PAGE}: choose one that is")
        space = os.statvfs(self.root)
        free = space.f_bavail * space.f_frsize
        needed = max((max(1, self.nbytes // size) + 2 * SINGLE_BLOCKS) * file_bytes(size) for size in sizes)
        if needed > free:
            raise InvalidArgument(
                f"the benchmark needs {size_text(needed)} for a while, and {str(self.root)!r} has {size_text(free)} "
                "free: choose a smaller --bytes, or make room"
            )

    def _machine(self) -> dict[str, str]:
        mount = mount_of(str(self.root))
        cores = len(os.sched_getaffinity(0))
        return {
            "file system": f"{mount.kind} on {mount.source}",
            "cores": str(cores),
            "effort": f"{self.rounds} rounds of {size_text(self.nbytes)} in each direction, taking turns",
        }
