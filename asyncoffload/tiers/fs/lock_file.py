"""A file that is open for the locks on it, for no longer than its user exists."""

from __future__ import annotations

import os
import weakref

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

_open: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """An open file, whose locks are dropped when it is closed.

    Who forgets it has closed it, and so has a forked child: it would keep the locks of a parent that is dead.

    Args:
        path: where it is.
        flags: of ``open``, beside those that every such file has.

    Raises:
        OSError: the operating system refused.
    """

    def __init__(self, path: str, flags: int = 0) -> None:
        self._fd = os.open(path, _FLAGS | flags, 0o600)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._close.atexit = False  # threads may still use it then, and the end of the process closes it anyway
        _open.add(self)

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._fd

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return self._close.alive

    def close(self) -> None:
        """Drop the locks; idempotent."""
        self._close()

    def forget(self) -> None:
        """This process is a forked child: the file is its parent's."""
        self.close()


def _forget_all() -> None:
    for file in list(_open):
        file.forget()


os.register_at_fork(after_in_child=_forget_all)
