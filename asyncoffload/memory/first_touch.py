"""Making the pages of host memory present ahead of their use, by several threads at once.

A page is found, zeroed and mapped when it is first touched, at one or two gigabytes a second by one thread; whoever
pins memory pays for that first. ``mmap.madvise`` would do it without touching a byte, but keeps the GIL meanwhile, so
the system call is made through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from asyncoffload.errors import CapacityError

MOST_THREADS = 4
"""More find the kernel's locks taken."""

_MADV_WIPEONFORK = 18
_MADV_POPULATE_WRITE = 23
_LARGEST_CHUNK = 256 << 20
_HUGE_PAGE = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def sensible_threads() -> int:
    """How many threads touch fastest on the processors that this process may use."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def populate(address: int, nbytes: int) -> int:
    """Make pages present, and keep what they hold. Returns the number of the error, 0 for success."""
    return _madvise(address, nbytes, _MADV_POPULATE_WRITE)


def first_touch(
    address: int,
    nbytes: int,
    threads: int,
    *,
    zeros: bool = False,
    populate: Callable[[int, int], int] = populate,
) -> None:
    """Make every page of a mapping present and writable. Blocks, without the GIL; keeps what the memory holds.

    Args:
        address: page-aligned, mapped and writable for ``nbytes`` bytes until the call returns.
        threads: how many touch it, the caller's among them; 0: do nothing.
        zeros: the memory holds zeros, and nobody else writes it. Where the kernel cannot populate (before Linux 5.14)
            such memory is touched by writing, other memory by reading, which for private mappings does not help.
        populate: as :func:`populate`.

    Raises:
        CapacityError: the machine has no such memory to give.
    """
    if threads <= 0:
        return
    chunk = min(-(-nbytes // (4 * threads * _HUGE_PAGE)) * _HUGE_PAGE, _LARGEST_CHUNK)
    chunks = deque((address + start, min(chunk, nbytes - start)) for start in range(0, nbytes, chunk))
    failures: list[int] = []

    def touch() -> None:
        while not failures:
            try:
                part = chunks.popleft()
            except IndexError:
                return
            while (code := populate(*part)) in (errno.EINTR, errno.EAGAIN):
                pass
            if code == errno.EINVAL:
                _touch(*part, zeros)
            elif code:
                failures.append(code)

    helpers = [
        threading.Thread(target=touch, name="asyncoffload-touch", daemon=True)
        for _ in range(min(threads, len(chunks)) - 1)
    ]
    for helper in helpers:
        helper.start()
    try:
        touch()
    finally:
        chunks.clear()
        for helper in helpers:
            helper.join()
    if failures:
        why = os.strerror(failures[0])
        raise CapacityError(f"no {nbytes} bytes of host memory to be had ({why}): ask for fewer slots")


def wiped_on_fork(address: int, nbytes: int) -> bool:
    """Let forked children find zeros in place of private memory; tells whether they will. Others share it with them.

    A fork shares private pages until somebody writes them, and then the writer gets a new page: on older kernels that
    parts the parent from the pages that a device knows, on newer ones the fork copies all of them.
    """
    return _madvise(address, nbytes, _MADV_WIPEONFORK) == 0


def _madvise(address: int, nbytes: int, advice: int) -> int:
    """The call's error number, 0 for success."""
    return ctypes.get_errno() if _libc.madvise(address, nbytes, advice) else 0


def _touch(address: int, nbytes: int, zeros: bool) -> None:
    pages = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))[:: mmap.PAGESIZE]
    if zeros:
        pages[:] = 0
    else:
        pages.max()
