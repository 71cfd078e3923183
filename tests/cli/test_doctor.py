"""``doctor``: it tries things out, says what a tier would fall back to, and recommends what settings accept."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asyncoffload.cli.fs_bench.raw import RawFiles
from asyncoffload.cli.health import advice, machine
from asyncoffload.cli.health.findings import Finding, Level, worst
from asyncoffload.cli.health.machine import cgroup_limit
from asyncoffload.cli.health.place import direct_finding, place_findings, quota_finding, trait_findings
from asyncoffload.cli.health.speed import BLOCK_SIZES, THREAD_COUNTS, Speed, SpeedProbe
from asyncoffload.config import FileSystemTierSettings
from asyncoffload.tiers.fs.mounts import Mount
from asyncoffload.tiers.fs.traits import DirectAlignment, Trait
from tests.cli.real_root import keys_of, run, run_json, store, words

QUICK = ("--bytes", "8MiB", "--seconds", "0.1")
MIB = 1 << 20


def test_a_directory_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    store(tmp_path, keys_of(2))
    before = sorted(map(str, tmp_path.rglob("*")))
    status, report = run_json("doctor", tmp_path, *QUICK)
    assert status == 0
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert set(report) == {
        "root",
        "level",
        "interrupted",
        "findings",
        "speeds",
        "thread_speeds",
        "good_block_bytes",
        "options",
    }
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert set(findings["O_DIRECT"]) == {"topic", "name", "level", "found", "remedy"}
    for name in (
        "type",
        "free space",
        "rights",
        "rename replaces a file at once",
        "flock excludes others",
        "mmap is shared",
        "times are kept to the microsecond",
        "event loop",
        "CUDA",
        "memory",
        "locked memory (RLIMIT_MEMLOCK)",
        "open files (RLIMIT_NOFILE)",
    ):
        assert name in findings
    speeds = report["speeds"]
    assert isinstance(speeds, list)
    assert [speed["block_bytes"] for speed in speeds] == list(BLOCK_SIZES)
    assert set(speeds[0]) == {"block_bytes", "n_threads", "store", "load"}
    assert [speed["n_threads"] for speed in report["thread_speeds"]] == list(THREAD_COUNTS)


def test_what_it_recommends_is_accepted(tmp_path: Path) -> None:
    _, report = run_json("doctor", tmp_path, *QUICK)
    options = report["options"]
    assert isinstance(options, dict)
    settings = FileSystemTierSettings.parse(options)
    assert settings.root_dir == tmp_path
    assert {"io_threads", "direct_io", "quota", "min_free"} <= set(options)


def test_without_measuring(tmp_path: Path) -> None:
    result = run("doctor", tmp_path, "--no-measure")
    assert result.exit_code == 0
    for text in ("O_DIRECT", "uvloop", "Recommended settings", "quota"):
        assert text in result.output
    assert "GB/s" not in result.output
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_written_to_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    result = run("doctor", tmp_path)
    assert result.exit_code == 1
    assert "Recommended" not in result.output
    assert "Permission denied → choose one that this process may write to" in words(result)


def test_a_disk_that_is_too_full_is_not_measured(tmp_path: Path) -> None:
    result = run("doctor", tmp_path, "--bytes", "900TiB")
    assert result.exit_code == 0
    assert "not measured: too little free space" in words(result)


def test_a_disk_that_fills_up_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RawFiles, "write", refuse)
    result = run("doctor", tmp_path, *QUICK)
    assert result.exit_code == 0
    assert "not measured: No space left on device" in words(result)
    assert os.listdir(tmp_path) == []


def test_an_interrupt_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = SpeedProbe._measure

    def interrupted(self: SpeedProbe, block_bytes: int, n_threads: int, progress: Callable[[], None]) -> Speed:
        if block_bytes > BLOCK_SIZES[0]:
            raise KeyboardInterrupt
        return measure(self, block_bytes, n_threads, progress)

    monkeypatch.setattr(SpeedProbe, "_measure", interrupted)
    status, report = run_json("doctor", tmp_path, *QUICK)
    assert (status, report["interrupted"], len(report["speeds"])) == (130, True, 1)
    result = run("doctor", tmp_path, *QUICK)
    assert result.exit_code == 130
    assert "O_DIRECT" in result.output
    assert "64.0KiB" in result.output
    assert "interrupted: this is not all of it" in words(result)
    assert os.listdir(tmp_path) == []


def test_an_interrupt_before_anything_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: str) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr("asyncoffload.cli.doctor_command.place_findings", interrupted)
    result = run("doctor", tmp_path)
    assert (result.exit_code, "interrupted" in result.output) == (130, True)


@pytest.mark.parametrize(
    ("kind", "level", "text"),
    [
        ("ext4", Level.OK, "ext4 on source"),
        ("tmpfs", Level.WARNING, "lie in memory"),
        ("overlay", Level.WARNING, "mount a volume"),
        ("nfs4", Level.NOTE, "not a local disk"),
        ("fuse.sshfs", Level.NOTE, "not a local disk"),
    ],
)
def test_file_systems_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: Level, text: str
) -> None:
    mount = Mount("/", kind, "source", frozenset({"ro"}))
    monkeypatch.setattr("asyncoffload.cli.health.place.mount_of", lambda _: mount)
    findings = {finding.name: finding for finding in place_findings(str(tmp_path))}
    assert findings["type"].level is level
    assert text in findings["type"].found + findings["type"].remedy
    assert findings["mount"].level is Level.BAD


@pytest.mark.parametrize(
    ("alignment", "level", "text"),
    [
        (DirectAlignment(512, 4, ""), Level.OK, "works from 512 bytes in the file and 4 in memory"),
        (DirectAlignment(0, 0, "Invalid argument"), Level.WARNING, "(Invalid argument): direct_io='auto' falls back"),
        (DirectAlignment(16384, 512, ""), Level.WARNING, "tiers align to 4096 bytes"),
    ],
)
def test_what_direct_io_falls_back_to_is_said(alignment: DirectAlignment, level: Level, text: str) -> None:
    finding = direct_finding(alignment)
    assert finding.level is level
    assert text in f"{finding.found} {finding.remedy}"


def test_a_trait_that_is_missing_says_what_it_means() -> None:
    good, bad = trait_findings([Trait("a", True, "it is", "x"), Trait("b", False, "it is not", "so that")])
    assert (good.level, good.remedy) == (Level.OK, "")
    assert (bad.level, bad.remedy) == (Level.WARNING, "so that")


def test_without_locks_a_quota_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quota_finding(str(tmp_path)).level is Level.OK

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.fcntl", refuse)
    finding = quota_finding(str(tmp_path))
    assert finding.level is Level.WARNING
    assert os.strerror(errno.ENOLCK) in finding.found


def test_the_worst_of_some_findings() -> None:
    levels = [Level.NOTE, Level.WARNING, Level.OK]
    assert worst(Finding("", "", level, "") for level in levels) is Level.WARNING
    assert worst([]) is Level.OK


# Limits


def test_the_least_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("3000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert cgroup_limit(str(tmp_path), str(membership)) == 1000


def test_the_older_control_groups(tmp_path: Path) -> None:
    (tmp_path / "memory" / "a").mkdir(parents=True)
    (tmp_path / "memory" / "a" / "memory.limit_in_bytes").write_text("2000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu,memory:/a\n4:pids:/a\nnonsense\n")
    assert cgroup_limit(str(tmp_path), str(membership)) == 2000


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(str(tmp_path), str(tmp_path / "nowhere")) is None
    (tmp_path / "cgroup").write_text("0::/gone\n")
    assert cgroup_limit(str(tmp_path), str(tmp_path / "cgroup")) is None


@pytest.mark.parametrize(
    ("finding", "limit", "level", "found"),
    [
        (machine._files_finding, 256, Level.WARNING, "256"),
        (machine._files_finding, 65536, Level.OK, "65,536"),
        (machine._files_finding, resource.RLIM_INFINITY, Level.OK, "unlimited"),
        (machine._locked_finding, 8 * MIB, Level.NOTE, "8.0MiB"),
        (machine._locked_finding, resource.RLIM_INFINITY, Level.OK, "unlimited"),
    ],
)
def test_limits(finding: Callable[[tuple[int, int]], Finding], limit: int, level: Level, found: str) -> None:
    assert finding((limit, limit)).level is level
    assert finding((limit, limit)).found == found


def test_a_control_group_that_is_smaller_than_the_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cgroup_limit", lambda: 100 * MIB)
    memory = next(machine.memory_findings())
    assert memory.level is Level.NOTE
    assert "100.0MiB by control group" in memory.found


@pytest.mark.parametrize(
    ("built", "names", "level", "found"),
    [
        (None, [], Level.NOTE, "is built without CUDA: the processor is the device"),
        ("12.9", [], Level.NOTE, "finds no device: the processor is the device"),
        ("12.9", ["GPU A", "GPU B"], Level.OK, "GPU A, GPU B; torch"),
    ],
)
def test_cuda(
    monkeypatch: pytest.MonkeyPatch, built: str | None, names: Sequence[str], level: Level, found: str
) -> None:
    monkeypatch.setattr("torch.version.cuda", built)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(names))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(names))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: names[index])
    finding = machine.cuda_finding()
    assert finding.level is level
    assert found in finding.found


# Advice


def test_the_smallest_block_that_is_nearly_as_fast() -> None:
    speeds = [Speed(64, 8, 10, 20), Speed(256, 8, 85, 81), Speed(1024, 8, 100, 90), Speed(4096, 8, 90, 100)]
    assert advice.smallest_good_block(speeds) == 256
    assert advice.smallest_good_block([Speed(64, 8, 100, 10), Speed(256, 8, 10, 100)]) == 256


def test_threads_are_left_to_auto_unless_more_are_clearly_better() -> None:
    even = [Speed(1, n, 0, load) for n, load in ((2, 80), (8, 100), (32, 110))]
    assert advice.io_threads(even, auto=8) == "auto"
    more = [Speed(1, n, 0, load) for n, load in ((2, 40), (8, 100), (16, 190), (32, 200))]
    assert advice.io_threads(more, auto=8) == 16


def test_a_quota_is_most_of_what_there_is() -> None:
    assert advice.quota(100 << 30, 10 << 30) == 99 << 30
    assert advice.quota(MIB, 0) == MIB * 9 // 10
    assert advice.min_free(100 << 30) == 2 << 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", "lots"], "'lots' is not a size"),
        (["--bytes", "1"], "--bytes is 1, less than one of the largest blocks that are measured: choose 4.0MiB or"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory: make it first"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("doctor", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


def test_a_root_that_is_none(tmp_path: Path) -> None:
    assert "does not exist: name the root_dir of a tier, or make it first" in words(run("doctor", tmp_path / "no"))
