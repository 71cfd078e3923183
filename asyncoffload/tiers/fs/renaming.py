"""Giving a file its name, and knowing exactly what it took the place of.

``rename`` replaces in silence whatever stands at the new name. Who counts bytes has to know what that was, also when a
neighbour puts a file there at the same moment. Linux's ``renameat2`` can refuse to replace, and can exchange two names
at once; file systems that can do neither get a look before the rename, which a neighbour may make wrong.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_UNABLE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def put_in_place(temporary: str, path: str) -> int:
    """Rename a file; returns the length in bytes of the file that it took the place of, or 0.

    Raises:
        OSError: the operating system refused.
    """
    while True:
        try:
            _rename(temporary, path, _NOREPLACE)
        except FileExistsError:
            try:
                _rename(temporary, path, _EXCHANGE)
            except FileNotFoundError:  # what stood there was removed meanwhile
                if not os.path.lexists(temporary):
                    raise
                continue
            replaced = os.lstat(temporary).st_size
            os.unlink(temporary)
            return replaced
        except OSError as refusal:
            if refusal.errno not in _UNABLE:
                raise
            return _replace(temporary, path)
        return 0


def _replace(temporary: str, path: str) -> int:
    replaced = 0
    with suppress(FileNotFoundError):
        replaced = os.lstat(path).st_size
    os.replace(temporary, path)
    return replaced


def _rename(old: str, new: str, flags: int) -> None:
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)
