"""What the I/O pool costs per block, and how long loads wait behind stores without end.

    python benchmarks/pool_latency.py [--dir DIR] [--rounds N]

1. Reading 64 KiB files out of the page cache: microseconds per block with 1, 4 and 16 blocks per hop, beside as many
   bare threads that take the files one by one and never meet an event loop.
2. Loads of 16 x 1 MiB that arrive at a fifth of the read ceiling while stores of 1 MiB never end, O_DIRECT where the
   file system has it: milliseconds from submission to the result being visible to the awaiting coroutine, for several
   values of ``max_storing_bytes``.

Every figure is the median over rounds, and the candidates take turns within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import mmap
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.slices import SliceBounds

KIB, MIB = 1 << 10, 1 << 20
JOB_BLOCKS = 16
READ_THREADS = WRITE_THREADS = 8
O_DIRECT = getattr(os, "O_DIRECT", 0)


def read_file(path: str, buffer: memoryview, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.preadv(descriptor, [buffer], 0)
    finally:
        os.close(descriptor)


def write_file(path: str, buffer: memoryview, flags: int = 0) -> None:
    temporary = f"{path}.{threading.get_ident()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | flags, 0o600)
    try:
        os.pwritev(descriptor, [buffer], 0)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


def direct_flag(folder: str) -> int:
    """O_DIRECT where the file system takes it, else 0."""
    try:
        write_file(os.path.join(folder, "probe"), memoryview(mmap.mmap(-1, MIB)), O_DIRECT)
    except OSError:
        return 0
    return O_DIRECT


def seconds_in_bare_threads(calls: list[Callable[[], None]]) -> float:
    """Seconds that as many plain threads as the pool has need for all calls."""
    left = iter(calls)

    def work() -> None:
        for call in left:
            call()

    threads = [threading.Thread(target=work) for _ in range(READ_THREADS + WRITE_THREADS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


async def seconds_in_pool(calls: list[Callable[[], None]], blocks_per_hop: int) -> float:
    """Seconds that the pool needs for all calls as one job."""
    bounds = SliceBounds(max_tasks=blocks_per_hop, max_bytes=64 * MIB, min_bytes=64 * MIB)
    pool = DualQueueThreadPool(READ_THREADS, WRITE_THREADS, load_slices=bounds)
    try:
        await pool.enqueue_load(0, 16, [int] * 16)
        start = time.perf_counter()
        await pool.enqueue_load(1, len(calls), calls, nbytes=len(calls) * 64 * KIB)
        return time.perf_counter() - start
    finally:
        await pool.aclose()


async def overhead(folder: str, rounds: int) -> None:
    memory = memoryview(mmap.mmap(-1, 1024 * 64 * KIB))
    calls: list[Callable[[], None]] = []
    for n in range(1024):
        block = memory[n * 64 * KIB : (n + 1) * 64 * KIB]
        path = os.path.join(folder, f"small-{n}")
        write_file(path, block)
        calls.append(partial(read_file, path, block))
    candidates: dict[str, list[float]] = {"bare threads": []}
    for _ in range(rounds):
        candidates["bare threads"].append(seconds_in_bare_threads(calls))
        for blocks in (1, 4, 16):
            candidates.setdefault(f"{blocks} per hop", []).append(await seconds_in_pool(calls, blocks))
    print("64 KiB reads, us per block: median (min .. max)")
    for name, seconds in candidates.items():
        each = sorted(second / len(calls) * 1e6 for second in seconds)
        print(f"  {name:14} {statistics.median(each):6.1f} ({each[0]:.1f} .. {each[-1]:.1f})")


class Storm:
    """A pool with stores without end and loads that arrive now and then."""

    def __init__(self, folder: str, max_storing_bytes: int) -> None:
        self.pool = DualQueueThreadPool(
            READ_THREADS, WRITE_THREADS, max_storing_bytes=max_storing_bytes, max_queued_bytes=256 * MIB
        )
        self.stored = 0
        self._flags = direct_flag(folder)
        self._source = memoryview(mmap.mmap(-1, MIB))
        self._target = memoryview(mmap.mmap(-1, JOB_BLOCKS * MIB))
        self._files = [os.path.join(folder, f"load-{n}") for n in range(16 * JOB_BLOCKS)]
        self._sinks = itertools.cycle([os.path.join(folder, f"store-{n}") for n in range(512)])
        for path in self._files:
            if not os.path.exists(path):
                write_file(path, self._source, self._flags)

    async def load(self) -> float:
        """Seconds from submission to the result."""
        paths = random.sample(self._files, JOB_BLOCKS)
        calls = [
            partial(read_file, path, self._target[n * MIB : (n + 1) * MIB], self._flags) for n, path in enumerate(paths)
        ]
        start = time.perf_counter()
        results = await self.pool.enqueue_load(1, JOB_BLOCKS, calls, nbytes=JOB_BLOCKS * MIB)
        assert results == [None] * JOB_BLOCKS, results
        return time.perf_counter() - start

    async def store_without_end(self) -> None:
        while True:
            await self.pool.room(JOB_BLOCKS * MIB)
            calls = [partial(write_file, next(self._sinks), self._source, self._flags) for _ in range(JOB_BLOCKS)]
            self.pool.enqueue_store(2, JOB_BLOCKS, calls, nbytes=JOB_BLOCKS * MIB)
            self.stored += JOB_BLOCKS

    async def run(self, seconds: float, interval: float | None) -> list[float]:
        """Latencies of loads that arrive every ``interval`` seconds; None: one after the other, no stores."""
        loads: list[asyncio.Task[float]] = []
        end = time.perf_counter() + seconds
        storing = None if interval is None else asyncio.create_task(self.store_without_end())
        while time.perf_counter() < end:
            loads.append(asyncio.create_task(self.load()))
            if interval is None:
                await loads[-1]
            else:
                await asyncio.sleep(random.expovariate(1 / interval))
        if storing is not None:
            storing.cancel()
            await asyncio.wait([storing])
        latencies = [await load for load in loads]
        await self.pool.aclose(drain=False)
        return latencies


async def storms(folder: str, rounds: int, seconds: float) -> None:
    alone = await Storm(folder, MIB).run(seconds, None)
    interval = 5 * statistics.mean(alone)
    rate = JOB_BLOCKS / statistics.mean(alone)
    print(f"loads of {JOB_BLOCKS} x 1 MiB; alone {rate:.0f} MiB/s, median {statistics.median(alone) * 1e3:.1f} ms")
    print(f"under stores without end, one every {interval * 1e3:.0f} ms; ms: median over rounds (min .. max)")
    results: dict[int, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for cap in (4, 16, 64):
            storm = Storm(folder, cap * MIB)
            latencies = sorted(await storm.run(seconds, interval))
            p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
            results.setdefault(cap, []).append((p50 * 1e3, p99 * 1e3, storm.stored / seconds))
    for cap, figures in results.items():
        p50s, p99s, rates = zip(*figures, strict=True)
        print(
            f"  {cap:2} MiB stored at a time: p50 {statistics.median(p50s):6.1f}  p99 {statistics.median(p99s):6.1f} "
            f"({min(p99s):.1f} .. {max(p99s):.1f})  stores {statistics.median(rates):.0f} MiB/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to put the files; by default the directory for temporary files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each storm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        asyncio.run(overhead(folder, options.rounds))
        asyncio.run(storms(folder, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
