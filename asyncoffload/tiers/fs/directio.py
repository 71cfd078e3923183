"""Whether bytes can go between device and slots without the page cache."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import numpy as np

from asyncoffload.tiers.fs.format import PAGE


def slots_are_aligned(slots: memoryview) -> bool:
    """Whether each slot of a ``(n_slots, slot_bytes)`` view begins at a page boundary of memory."""
    array = np.asarray(slots)
    return array.ctypes.data % PAGE == 0 and array.strides[0] % PAGE == 0


def file_system_takes_direct_io(path: str) -> bool:
    """Whether a page can be written and read back with ``O_DIRECT`` in a new file at ``path``, which is removed again.

    File systems that cannot do it (some network and overlay ones) refuse with ``EINVAL`` at open or at the transfer.
    """
    page = mmap.mmap(-1, PAGE)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT, 0o600)
        try:
            return os.pwritev(fd, [page], 0) == PAGE and os.preadv(fd, [page], 0) == PAGE
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        page.close()
        with suppress(OSError):
            os.unlink(path)
