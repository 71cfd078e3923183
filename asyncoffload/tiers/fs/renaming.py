"""Giving a file its name, and knowing exactly what it took the place of.

``rename`` replaces in silence whatever stands at the new name. Who counts bytes has to know what that was, also when a
neighbour puts a file there at the same moment. Linux's ``renameat2`` can refuse to replace, and can exchange two names
at once; file systems that can do neither get a look before the rename, which a neighbour may make wrong.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from asyncoffload.tiers.fs.system_calls import EXCHANGE, NO_REPLACE, THE_SYSTEM, SystemCalls

_UNABLE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


def put_in_place(temporary: str, path: str, calls: SystemCalls = THE_SYSTEM) -> int:
    """Rename a file; returns the length in bytes of the file that it took the place of, or 0.

    Raises:
        OSError: the operating system refused.
    """
    while True:
        try:
            calls.rename(temporary, path, NO_REPLACE)
        except FileExistsError:
            try:
                calls.rename(temporary, path, EXCHANGE)
            except FileNotFoundError:  # what stood there was removed meanwhile
                if not os.path.lexists(temporary):
                    raise
                continue
            replaced = os.lstat(temporary).st_size
            calls.unlink(temporary)
            return replaced
        except OSError as refusal:
            if refusal.errno not in _UNABLE:
                raise
            return _replace(temporary, path, calls)
        return 0


def _replace(temporary: str, path: str, calls: SystemCalls) -> int:
    replaced = 0
    with suppress(FileNotFoundError):
        replaced = os.lstat(path).st_size
    calls.replace(temporary, path)
    return replaced
