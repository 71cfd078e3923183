"""The machine and the process: event loop, CUDA, limits."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from importlib.metadata import version

from asyncoffload.cli.health.findings import Finding, Level
from asyncoffload.cli.results import size_text

_FILES_WANTED = 1024


def loop_finding() -> Finding:
    """What coroutines run on."""
    found = f"Python {platform.python_version()}, uvloop {version('uvloop')}"
    return Finding("process", "event loop", Level.OK, found)


def core_finding() -> Finding:
    """How many processors the process may use."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return Finding("process", "cores", Level.OK, f"{usable} of {present}")


def cuda_finding() -> Finding:
    """Whether there is an accelerator. Takes seconds, since it imports torch."""
    import torch

    name, built = "CUDA", torch.version.cuda
    if built is None:
        found = f"torch {torch.__version__} is built without CUDA: the processor is the device"
        return Finding("process", name, Level.NOTE, found, "to use a GPU, install a build of torch for CUDA")
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds no device: the processor is the device"
        return Finding("process", name, Level.NOTE, found, "to use a GPU, see that nvidia-smi shows one here")
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Finding("process", name, Level.OK, f"{names}; torch {torch.__version__}, CUDA {built}")


def memory_findings() -> Iterator[Finding]:
    """How much memory the process may use, lock, and how many files it may open."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup_limit()
    if limit is None or limit >= total:
        yield Finding("process", "memory", Level.OK, f"{size_text(total)}, no smaller limit of a control group")
    else:
        remedy = "the control group counts host_bytes and page cache together: leave room for both"
        found = f"{size_text(limit)} by control group, of {size_text(total)}"
        yield Finding("process", "memory", Level.NOTE, found, remedy)
    yield _locked_finding(resource.getrlimit(resource.RLIMIT_MEMLOCK))
    yield _files_finding(resource.getrlimit(resource.RLIMIT_NOFILE))


def cgroup_limit(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int | None:
    """The least memory limit of the process's control group and those above it, in bytes; None where there is none.

    Args:
        root: where control groups are mounted.
        membership: the process's groups, in the format of ``cgroups(7)``.
    """
    try:
        with open(membership, encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    limits: list[int] = []
    for fields in lines:
        if len(fields) != 3:
            continue
        _, controllers, path = fields
        if not controllers:
            limits += _limits(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(os.path.join(root, "memory"), path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(top: str, path: str, name: str) -> Iterator[int]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        try:
            with open(os.path.join(top, *parts[:depth], name), encoding="utf-8") as file:
                text = file.read().strip()
        except OSError:  # within a container only its own group is mounted
            continue
        if text.isdecimal():
            yield int(text)


def _locked_finding(limits: tuple[int, int]) -> Finding:
    soft = limits[0]
    unlimited = soft == resource.RLIM_INFINITY
    found = "unlimited" if unlimited else size_text(soft)
    remedy = "" if unlimited else "counts for mlock and RDMA; where pinning host memory fails, raise it: ulimit -l"
    return Finding("process", "locked memory (RLIMIT_MEMLOCK)", Level.OK if unlimited else Level.NOTE, found, remedy)


def _files_finding(limits: tuple[int, int]) -> Finding:
    soft, name = limits[0], "open files (RLIMIT_NOFILE)"
    if soft == resource.RLIM_INFINITY:
        return Finding("process", name, Level.OK, "unlimited")
    few = soft < _FILES_WANTED
    remedy = f"a server with many connections runs out of them: ulimit -n {_FILES_WANTED} or more" if few else ""
    return Finding("process", name, Level.WARNING if few else Level.OK, f"{soft:,}", remedy)
