"""When it is right, and cheaper, to make a whole file system durable instead of file after file.

A journal has one end: whoever waits for one file to be committed waits for all that came before it. So ``syncfs`` costs
about as much as syncing a single file, unless others have left much unwritten, which it then has to wait for.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from asyncoffload.tiers.fs.mounts import mount_of

FEWEST = 12
"""Files and directories from which on it is cheaper."""

MOST_UNWRITTEN = 64 << 20
"""Bytes that anybody may have left in the page cache, above which it may take long: a tenth of a second of a disk."""

_JOURNALED = {"ext3", "ext4", "xfs"}
_TELLS_OF_ERRORS = (5, 17)  # before this version of Linux, ``syncfs`` kept it to itself when the journal had failed
_VERSION = re.compile(r"(\d+)\.(\d+)")
_UNWRITTEN = re.compile(r"^(?:Dirty|Writeback): +(\d+) kB$", re.MULTILINE)


_suited: dict[int, bool] = {}  # by device


def may_sync_whole(path: str) -> bool:
    """Whether ``syncfs`` does what it should where a path lies, and is cheap now. Blocks for a small read.

    Raises:
        OSError: the operating system refused.
    """
    device = os.stat(path).st_dev
    if device not in _suited:
        version = _VERSION.match(os.uname().release)
        tells = version is not None and (int(version[1]), int(version[2])) >= _TELLS_OF_ERRORS
        _suited[device] = tells and mount_of(path).kind in _JOURNALED
    return _suited[device] and unwritten_bytes() <= MOST_UNWRITTEN


def unwritten_bytes(table: str = "/proc/meminfo") -> int:
    """Bytes in the page cache that have not been written to any device; very many where the system does not tell."""
    with suppress(OSError), open(table, encoding="ascii") as file:
        found = _UNWRITTEN.findall(file.read())
        if found:
            return sum(int(kib) << 10 for kib in found)
    return 1 << 62
