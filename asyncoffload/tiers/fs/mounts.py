"""Which file system a path lies on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system.

    Attributes:
        point: where it is mounted.
        kind: its type, such as ``"ext4"``; ``"unknown"`` where the system does not tell.
        source: the device, export or name that was mounted.
        options: how it was mounted.
    """

    point: str
    kind: str
    source: str
    options: frozenset[str]


def mount_of(path: str, table: str = "/proc/self/mountinfo") -> Mount:
    """The file system that a path lies on. Blocks for one small read.

    Args:
        path: any path; what of it does not exist is taken to lie where the rest does.
        table: the table of mounts, in the format of ``proc_pid_mountinfo(5)``.
    """
    real = os.path.realpath(path)
    best = Mount("/", "unknown", "unknown", frozenset())
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return best
    for line in lines:
        mounted, _, backing = line.partition(" - ")
        fields, sources = mounted.split(), backing.split()
        if len(fields) < 6 or len(sources) < 2:
            continue
        point = _plain(fields[4])
        # Of two mounts at one point the later hides the earlier.
        if _contains(point, real) and len(point) >= len(best.point):
            best = Mount(point, sources[0], _plain(sources[1]), frozenset(fields[5].split(",")))
    return best


def _contains(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
