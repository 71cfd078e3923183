"""One call for many copies between addresses of this process, without the GIL.

A Python call per fragment is slow twice: it costs microseconds, and each call that releases the GIL has to win it
back, which takes a switch interval (5 ms) whenever another thread computes. ``process_vm_readv(2)`` on the process
itself moves up to 1,024 fragments between arbitrary addresses in one system call. A sandbox may forbid it; then
``memmove`` does, one call per fragment.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.types import Int64s

BatchCopy = Callable[[CopyBatch], None]
"""Performs all copies of a batch on the calling thread, in calls that release the GIL; raises when one fails."""

MAX_COPIES_PER_CALL = 1024
"""``UIO_MAXIOV``: what the kernel takes in one vectored call."""

_process_vm_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t
_process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)


def copy_vectored(batch: CopyBatch) -> None:
    """Copy with ``process_vm_readv``, at most :data:`MAX_COPIES_PER_CALL` fragments to a call.

    Raises:
        OSError: the kernel refuses the call, or (``EFAULT``) an address is not mapped.
    """
    for first in range(0, len(batch), MAX_COPIES_PER_CALL):
        part = batch[first : first + MAX_COPIES_PER_CALL]
        dst, src = _iovecs(part.dst, part.nbytes), _iovecs(part.src, part.nbytes)
        copied = _process_vm_readv(os.getpid(), dst.ctypes.data, len(dst), src.ctypes.data, len(src), 0)
        if copied < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"copy of {part.total_bytes} bytes within host memory: {os.strerror(code)}")
        if copied != part.total_bytes:
            raise OSError(errno.EFAULT, f"only {copied} of {part.total_bytes} bytes could be copied")


def copy_one_by_one(batch: CopyBatch) -> None:
    """Copy with one ``memmove`` per fragment; wrong addresses end the process."""
    for dst, src, nbytes in zip(batch.dst.tolist(), batch.src.tolist(), batch.nbytes.tolist(), strict=True):
        ctypes.memmove(dst, src, nbytes)


def best_batch_copy() -> BatchCopy:
    """:func:`copy_vectored` where this process may use it, else :func:`copy_one_by_one`."""
    there, here = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    trial = CopyBatch(*(np.array([n], dtype=np.int64) for n in (here.ctypes.data, there.ctypes.data, there.nbytes)))
    try:
        copy_vectored(trial)
    except OSError:
        return copy_one_by_one
    return copy_vectored


def _iovecs(addresses: Int64s, nbytes: Int64s) -> Int64s:
    return np.stack((addresses, nbytes), axis=1)
