"""A directory of a command's own. It goes with the command; what a killed one left goes with the next.

The command holds a lock on its directory for as long as it lives, so whoever can take the lock knows that it is dead.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_OURS = re.compile(r"asyncoffload-(?:bench|doctor|replay)-[a-z0-9_]{8}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def own_directory(parent: str, command: str) -> Iterator[str]:
    """A new directory that is removed afterwards, with all that is in it.

    Args:
        parent: where; what killed commands left there is removed first.
        command: ``"bench"``, ``"doctor"`` or ``"replay"``.

    Raises:
        OSError: it cannot be made.
    """
    remove_dead(parent)
    place, fd = _make(parent, command)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(fd)


def remove_dead(parent: str, *, only_look: bool = False) -> list[str]:
    """Remove what killed commands left in a directory, or only look for it; returns the names.

    Raises:
        OSError: the directory cannot be read.
    """
    dead = []
    for name in sorted(filter(_OURS.fullmatch, os.listdir(parent))):
        with suppress(OSError):  # not a directory, not ours to open, or in use; where there are no locks, who knows
            path = os.path.join(parent, name)
            fd = os.open(path, _DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead.append(name)
                if not only_look:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
    return dead


def _make(parent: str, command: str) -> tuple[str, int]:
    while True:
        place = tempfile.mkdtemp(prefix=f"asyncoffload-{command}-", dir=parent)
        with suppress(FileNotFoundError):  # until it is locked, somebody else may take it for a dead one's
            fd = os.open(place, _DIRECTORY)
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(place):
                return place, fd
            os.close(fd)
