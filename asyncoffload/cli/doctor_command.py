"""The ``doctor`` command: from its options to its exit status."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.markup import escape
from rich.table import Table

from asyncoffload.cli.health import advice
from asyncoffload.cli.health.findings import Finding, Level, worst
from asyncoffload.cli.health.machine import core_finding, cuda_finding, loop_finding, memory_findings
from asyncoffload.cli.health.place import direct_finding, place_findings, quota_finding, trait_findings
from asyncoffload.cli.health.speed import BLOCK_SIZES, THREAD_COUNTS, Speed, SpeedProbe
from asyncoffload.cli.own_directory import own_directory
from asyncoffload.cli.results import ALL_WELL, INTERRUPTED, SOMETHING_WRONG, ended, progress, show, size_text
from asyncoffload.errors import InvalidArgument
from asyncoffload.tiers.fs.format import PAGE, file_bytes
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.tiers.fs.summary import summarise
from asyncoffload.tiers.fs.survey import layout_directories
from asyncoffload.tiers.fs.traits import direct_alignment, traits_of

_COLOURS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.BAD: "red"}
_LOOKS = 4


@dataclass(slots=True)
class Diagnosis:
    """What was found out.

    Attributes:
        findings: everything that was looked at.
        speeds: of the disk by block size.
        thread_speeds: by number of threads, with blocks of the recommended size.
        good_block_bytes: the smallest block that is nearly as fast as any; None where speed was not measured.
        options: recommended settings of a file system tier.
        interrupted: whether this is not all of it.
    """

    findings: list[Finding] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    thread_speeds: list[Speed] = field(default_factory=list)
    good_block_bytes: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorCommand:
    """The options of one invocation; ``asyncoffload doctor --help`` explains each."""

    root: Path
    measure: bool
    nbytes: int
    seconds: float
    json: Path | None

    def run(self) -> int:
        """Look at everything, print the table, write the file; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        if self.measure and self.nbytes < max(BLOCK_SIZES):
            raise InvalidArgument(
                f"--bytes is {self.nbytes:,}, less than one of the largest blocks that are measured: choose "
                f"{size_text(max(BLOCK_SIZES))} or more, or --no-measure"
            )
        diagnosis = Diagnosis()
        try:
            self._diagnose(diagnosis)
        except KeyboardInterrupt:
            diagnosis.interrupted = True
        level = worst(diagnosis.findings)
        figures = {
            "root": str(self.root),
            "level": level.value,
            "interrupted": diagnosis.interrupted,
            "findings": [{**asdict(finding), "level": finding.level.value} for finding in diagnosis.findings],
            "speeds": [asdict(speed) for speed in diagnosis.speeds],
            "thread_speeds": [asdict(speed) for speed in diagnosis.thread_speeds],
            "good_block_bytes": diagnosis.good_block_bytes,
            "options": diagnosis.options,
        }
        show(figures, lambda: _tables(diagnosis), self.json)
        if diagnosis.interrupted:
            return INTERRUPTED
        return SOMETHING_WRONG if level is Level.BAD else ALL_WELL

    def _diagnose(self, diagnosis: Diagnosis) -> None:
        root = str(self.root)
        steps = _LOOKS + (len(BLOCK_SIZES) + len(THREAD_COUNTS) if self.measure else 0)
        with progress(steps, "looking") as advance:
            advance("directory")
            diagnosis.findings += place_findings(root)
            direct = False
            try:
                with own_directory(root, "doctor") as place:
                    advance("file system")
                    alignment = direct_alignment(place)
                    direct = 0 < max(alignment.offset, alignment.memory) <= PAGE
                    diagnosis.findings += [
                        direct_finding(alignment),
                        *trait_findings(traits_of(place)),
                        quota_finding(place),
                    ]
                    if self.measure:
                        self._measure(diagnosis, place, direct, advance)
            except OSError as refusal:
                why = f"{refusal.strerror or refusal}"
                remedy = "choose one that this process may write to, or change its owner, mode or free space"
                diagnosis.findings.append(Finding("directory", "writing", Level.BAD, why, remedy))
            advance("process")
            diagnosis.findings += [loop_finding(), core_finding(), *memory_findings()]
            advance("CUDA")
            diagnosis.findings.append(cuda_finding())
            if worst(diagnosis.findings) is not Level.BAD:
                advance("what lies there", 0)
                diagnosis.options = self._options(diagnosis)

    def _measure(self, diagnosis: Diagnosis, place: str, direct: bool, advance: Callable[..., None]) -> None:
        space = os.statvfs(place)
        if 2 * self.nbytes > space.f_bavail * space.f_frsize:
            remedy = f"make room for {size_text(2 * self.nbytes)}, or choose a smaller --bytes"
            finding = Finding("speed", "bandwidth", Level.WARNING, "not measured: too little free space", remedy)
            diagnosis.findings.append(finding)
            return
        probe = SpeedProbe(place, direct=direct, nbytes=self.nbytes, seconds=self.seconds)

        def done() -> None:
            advance("speed")

        try:
            diagnosis.speeds.extend(probe.by_size(BLOCK_SIZES, 2 * auto_io_threads(1 << 20), done))
            diagnosis.good_block_bytes = good = advice.smallest_good_block(diagnosis.speeds)
            diagnosis.thread_speeds.extend(probe.by_threads(good, THREAD_COUNTS, done))
        except OSError as refusal:
            found = f"not measured: {refusal.strerror or refusal}"
            remedy = "see that space and inodes are free, and what the system's log says of the disk"
            diagnosis.findings.append(Finding("speed", "bandwidth", Level.WARNING, found, remedy))

    def _options(self, diagnosis: Diagnosis) -> Mapping[str, object]:
        root = str(self.root)
        space = os.statvfs(root)
        options: dict[str, object] = {"type": "fs", "root_dir": os.path.abspath(root), "direct_io": "auto"}
        if diagnosis.thread_speeds and diagnosis.good_block_bytes:
            auto = auto_io_threads(diagnosis.good_block_bytes)
            options["io_threads"] = advice.io_threads(diagnosis.thread_speeds, auto)
        free, unit = space.f_bavail * space.f_frsize, space.f_frsize
        ours = 0
        for directory in layout_directories(root):
            with suppress(PermissionError):  # another user's blocks cannot be counted; the quota is then careful
                ours += summarise(directory, time.time()).disk_bytes
        bounds = {"quota": advice.quota(free, ours), "min_free": advice.min_free(space.f_blocks * unit)}
        if diagnosis.good_block_bytes and space.f_files:
            finding = _inode_finding(bounds["quota"], diagnosis.good_block_bytes, space.f_favail)
            diagnosis.findings += [finding] if finding else []
        return options | {name: value for name, value in bounds.items() if value > 0}


def _inode_finding(quota: int, good_block_bytes: int, free_inodes: int) -> Finding | None:
    """Whether inodes end before the space does; None where they do not."""
    needed = quota // file_bytes(good_block_bytes)
    if needed <= free_inodes:
        return None
    found = f"{size_text(quota)} of blocks of {size_text(good_block_bytes)} need {needed:,}, {free_inodes:,} are free"
    remedy = "choose larger blocks (block_size_factor), or a file system with more inodes"
    return Finding("file system", "inodes for a full quota", Level.WARNING, found, remedy)


def _tables(diagnosis: Diagnosis) -> RenderableType:
    parts: list[RenderableType] = [_findings_table(diagnosis.findings)]
    if diagnosis.speeds:
        parts.append(_speed_table("block", [(size_text(s.block_bytes), s) for s in diagnosis.speeds]))
    if diagnosis.thread_speeds and diagnosis.good_block_bytes is not None:
        parts.append(_speed_table("threads", [(str(s.n_threads), s) for s in diagnosis.thread_speeds]))
        size = size_text(diagnosis.good_block_bytes)
        parts.append(f"Blocks of {size} or more use the disk well: choose block_size_factor so that yours are.")
    if diagnosis.options:
        parts += ["Recommended settings of the tier:", JSON.from_data(dict(diagnosis.options))]
    if diagnosis.interrupted:
        parts.append("interrupted: this is not all of it")
    return Group(*parts)


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", max_width=24)
    table.add_column(overflow="fold")
    topic = ""
    for finding in findings:
        if topic not in ("", finding.topic):
            table.add_section()
        topic = finding.topic
        colour = _COLOURS[finding.level]
        remedy = f"\n[{colour}]→ {escape(finding.remedy)}[/{colour}]" if finding.remedy else ""
        mark = f"[{colour}]{finding.level.value}[/{colour}]"
        table.add_row(mark, finding.name, escape(finding.found) + remedy)
    return table


def _speed_table(what: str, speeds: Sequence[tuple[str, Speed]]) -> Table:
    table = Table(what, "written GB/s", "read GB/s", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, speed in speeds:
        table.add_row(name, f"{speed.store / 1e9:.3f}", f"{speed.load / 1e9:.3f}")
    return table
