"""Writing a new block into the file of one that leaves.

Removing a file and making another one costs the file system twice: it frees blocks, and finds others. Where a root is
full and stays full, a store may take over the file of the block that has to go, which has its length already, and write
into that. On ext4 this is several times faster than a new file.

Nobody may be reading it meanwhile. A lease tells: Linux grants one for writing only while nobody else has the file
open. Who opened it nevertheless, by a path that he had looked up a moment before, finds neither the block that he looks
for nor a file of that name: that is a miss.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress

from asyncoffload.tiers.fs.system_calls import THE_SYSTEM, SystemCalls


def take_over(path: str, temporary: str, calls: SystemCalls = THE_SYSTEM) -> bool:
    """Move a file to a name that nobody else knows; whether it may be written to, since nobody has it open.

    Otherwise it has been removed. Blocks.

    Raises:
        OSError: the file could not be moved, and is where it was.
    """
    try:
        calls.replace(path, temporary)
    except FileNotFoundError:
        with suppress(FileExistsError):
            calls.mkdir(os.path.dirname(temporary), 0o700)
        calls.replace(path, temporary)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_nlink == 1 and _nobody_else_has_it(fd):
                return True
        finally:
            os.close(fd)
    except OSError:  # somebody else's file, or a file system without leases
        pass
    with suppress(FileNotFoundError):
        calls.unlink(temporary)
    return False


def _nobody_else_has_it(fd: int) -> bool:
    fcntl.fcntl(
        fd, fcntl.F_SETSIG, signal.SIGURG
    )  # what others do to the lease must not end the process, as SIGIO does
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
