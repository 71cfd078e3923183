"""Who is writing: a locked file for each living process, and the temporary files of those that died.

A temporary file carries its owner's name. The owner holds an exclusive ``flock`` on a file of that name for as long as
it lives; the operating system lets go of it when the process ends, however it ends. So whoever can take the lock knows
that the owner is dead, and that its temporary files are leftovers. Names are random and never used twice.

Everything here blocks and runs in an I/O thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress

from asyncoffload.tiers.fs.blockfile import TEMPORARY
from asyncoffload.tiers.fs.lock_file import LockFile

OWNERS = "owners"
_TEMPORARY = re.compile(rf".+\.([0-9a-f]{{16}}){re.escape(TEMPORARY)}")


def owner_of(file_name: str) -> str | None:
    """The owner that a temporary file's name tells; None for other files."""
    match = _TEMPORARY.fullmatch(file_name)
    return match[1] if match else None


class Owner:
    """A living owner of temporary files in one directory.

    Args:
        directory: the directory of a layout and rank; it must exist.
    """

    def __init__(self, directory: str) -> None:
        self._owners = os.path.join(directory, OWNERS)
        with suppress(FileExistsError):
            os.mkdir(self._owners, 0o700)
        while True:
            self.name = secrets.token_hex(8)
            self._path = os.path.join(self._owners, self.name)
            self._file = LockFile(self._path, os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(self._file.fd, fcntl.LOCK_EX)
                # Between the two a neighbour may have found the file unlocked, and collected it as a dead owner's.
                if os.fstat(self._file.fd).st_nlink:
                    break
            except BaseException:
                self.leave()
                raise
            self._file.close()
        with suppress(OSError):  # it is for humans, and a full disk must not keep anybody from loading
            os.write(self._file.fd, f"pid {os.getpid()}\n".encode())

    def leave(self) -> None:
        """Give the name up; idempotent. The caller has no temporary files any more."""
        if not self._file.is_open:
            return
        with suppress(OSError):
            os.unlink(self._path)
        self._file.close()


class Leftovers:
    """Removes the temporary files of dead owners, and remembers who is dead.

    Args:
        directory: the directory of a layout and rank.
        keep: an owner that is alive for certain: the caller's own.
        unlink: removes a file.
    """

    def __init__(self, directory: str, keep: str, unlink: Callable[[str], None] = os.unlink) -> None:
        self._owners = os.path.join(directory, OWNERS)
        self._unlink = unlink
        self._dead: dict[str, bool] = {keep: False}
        self.removed = 0

    def remove_if_dead(self, path: str, owner: str) -> None:
        """Remove a temporary file, unless its owner lives."""
        if owner not in self._dead:
            self._dead[owner] = self._is_dead(owner)
        if self._dead[owner]:
            with suppress(FileNotFoundError):  # a neighbour collects as well
                self._unlink(path)
                self.removed += 1

    def forget_dead_owners(self) -> None:
        """Remove the files of dead owners; a temporary file that names a missing one is a leftover all the same."""
        with suppress(FileNotFoundError):
            for owner in os.listdir(self._owners):
                if self._dead.get(owner, True):
                    self._is_dead(owner, forget=True)

    def _is_dead(self, owner: str, *, forget: bool = False) -> bool:
        path = os.path.join(self._owners, owner)
        try:
            file = LockFile(path)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if forget:  # under the lock: an owner that is just being made waits for it, and sees that it lost its file
                os.unlink(path)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            file.close()
