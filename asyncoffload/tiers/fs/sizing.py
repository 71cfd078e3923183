"""How many I/O threads are worth having."""

from __future__ import annotations

import os

SMALL_BLOCK = 256 << 10
"""Bytes below which a block costs more in system calls and Python than in waiting for the device."""


def auto_io_threads(block_bytes: int, cores: int | None = None) -> int:
    """Threads for ``io_threads="auto"``: as many read workers, and as many write workers.

    A thread that waits for the device costs nothing, so a few for each core keep a device's queue filled; but every
    thread that wakes up wants the interpreter, and the event loop queues behind them all.

    Args:
        block_bytes: bytes of a block.
        cores: processor cores that this process may use; asked of the operating system by default.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    per_core = 2 if block_bytes >= SMALL_BLOCK else 1
    return min(max(per_core * cores, 2), 16)
