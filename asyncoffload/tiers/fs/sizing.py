"""How many I/O threads are worth having."""

from __future__ import annotations

import os

SMALL_BLOCK = 256 << 10
"""Bytes below which a block costs more in system calls and Python than in waiting for the device."""


def auto_io_threads(block_bytes: int, cores: int | None = None) -> int:
    """Threads for ``io_threads="auto"``: as many read workers, and as many write workers.

    A load or a store spends part of its time in its checksum, so there must be more threads than requests that keep a
    device busy: on two cores, bare threads without a checksum come to their best with 8 to 16. But every thread that
    wakes up wants the interpreter, and the event loop queues behind them all, so there are no more than that.

    Args:
        block_bytes: bytes of a block.
        cores: processor cores that this process may use; asked of the operating system by default.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    per_core = 4 if block_bytes >= SMALL_BLOCK else 2
    return min(max(per_core * cores, 2), 16)
