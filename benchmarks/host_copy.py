"""How fast device blocks move to host slots and back on the CPU device, and what other threads feel of it.

    python benchmarks/host_copy.py [--json FILE]

For each fragment size (one block of one layer), random blocks of layer-major tensors go to random slots and back, one
transfer at a time. The reference is one thread that copies as many contiguous bytes: ``memcpy`` with the GIL released.
Reference, store and load take turns within each round; figures are medians over the rounds, with the quartiles of the
ratios. 1 GB is 1e9 bytes; each byte copied counts once.

The stall is what a second Python thread sees that reads the clock in a loop: the longest gap between two readings
during one transfer, median over the rounds; for comparison beside nothing, beside the reference (what is lost to the
processor and the memory alone), and beside slice assignment on a memoryview, which holds the GIL for the whole copy.
The speed beside such a busy thread is given, too: between two pieces a copying thread has to win the GIL back.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from asyncoffload.device.cpu import CPUDevice
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.device_host import DeviceHostHandler

LAYERS = 8
MOVED_BYTES = 64 << 20
ROUNDS = 15


class Rig:
    """Layer-major tensors and a region, both twice the size of what one transfer moves."""

    def __init__(self, fragment_bytes: int, copy_threads: int) -> None:
        n_moved = MOVED_BYTES // (fragment_bytes * LAYERS)
        rng = np.random.default_rng(0)
        layout = KVLayout("bench", "uint8", 16, (KVGroup((fragment_bytes,) * LAYERS),))
        self.caches = [torch.ones(2 * n_moved, fragment_bytes, dtype=torch.uint8) for _ in range(LAYERS)]
        self.region = HostRegion(2 * n_moved, layout.block_bytes)
        self.region.tensor.fill_(2)
        self.handler = DeviceHostHandler([self.caches], self.region, layout, device=CPUDevice(copy_threads))
        self.device = GPULoadStoreSpec(rng.permutation(2 * n_moved)[:n_moved])
        self.host = CPULoadStoreSpec(rng.permutation(2 * n_moved)[:n_moved])
        self.plain = torch.ones(2, MOVED_BYTES, dtype=torch.uint8)
        self._job = 0

    def memcpy(self) -> None:
        ctypes.memmove(self.plain[0].data_ptr(), self.plain[1].data_ptr(), MOVED_BYTES)

    def held_copy(self) -> None:
        target, source = (memoryview(row.numpy()) for row in self.plain)
        target[:] = source

    def store(self) -> None:
        self._transfer(self.device, self.host)

    def load(self) -> None:
        self._transfer(self.host, self.device)

    def _transfer(self, source: Any, destination: Any) -> None:
        self._job += 1
        transfer = self.handler.submit(self._job, (source, destination))
        self.handler.synchronize([self._job])
        assert transfer.result().success

    def close(self) -> None:
        asyncio.run(self.handler.aclose())


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(rig: Rig) -> dict[str, Any]:
    ways = {"memcpy": rig.memcpy, "store": rig.store, "load": rig.load}
    for way in ways.values():
        way()
    taken = [{name: seconds(way) for name, way in ways.items()} for _ in range(ROUNDS)]
    row: dict[str, Any] = {}
    for name in ways:
        row[f"{name}_GBps"] = MOVED_BYTES / statistics.median(times[name] for times in taken) / 1e9
    for name in ("store", "load"):
        ratios = [times["memcpy"] / times[name] for times in taken]
        row[f"{name}_ratio"] = statistics.median(ratios)
        row[f"{name}_ratio_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    return row


def beside(work: Callable[[], None]) -> tuple[float, float]:
    """Run the work beside a thread that reads the clock in a loop.

    Returns:
        Medians over the rounds: seconds of the work, and milliseconds of the longest gap between two readings.
    """
    longest, stop = 0.0, threading.Event()

    def spin() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    spinner = threading.Thread(target=spin)
    spinner.start()
    taken, gaps = [], []
    try:
        for _ in range(ROUNDS):
            longest = 0.0
            taken.append(seconds(work))
            gaps.append(longest * 1e3)
    finally:
        stop.set()
        spinner.join()
    return statistics.median(taken), statistics.median(gaps)


def stalls(rig: Rig) -> dict[str, Any]:
    row: dict[str, Any] = {}
    works = {
        "nothing": lambda: time.sleep(0.02),
        "memcpy": rig.memcpy,
        "memoryview": rig.held_copy,
        "store": rig.store,
        "load": rig.load,
    }
    for name, work in works.items():
        taken, gap = beside(work)
        row[f"stall_ms_{name}"] = gap
        row[f"{name}_GBps_beside_a_busy_thread"] = MOVED_BYTES / taken / 1e9
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = []
    print(f"{os.cpu_count()} processors, {LAYERS} layers, {MOVED_BYTES >> 20} MiB per transfer, {ROUNDS} rounds")
    for copy_threads in (1, 2):
        for fragment_bytes in (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20):
            rig = Rig(fragment_bytes, copy_threads)
            try:
                row = {"copy_threads": copy_threads, "fragment_bytes": fragment_bytes, **compare(rig), **stalls(rig)}
            finally:
                rig.close()
            figures.append(row)
            speeds = [f"{way} {row[f'{way}_GBps']:.2f} (x {row[f'{way}_ratio']:.2f})" for way in ("store", "load")]
            gaps = [f"{key.removeprefix('stall_ms_')} {row[key]:.2f}" for key in row if key.startswith("stall_ms_")]
            print(
                f"{copy_threads} thread(s), {fragment_bytes >> 10:4} KiB: memcpy {row['memcpy_GBps']:.2f} GB/s, "
                f"{', '.join(speeds)}, store beside a busy thread {row['store_GBps_beside_a_busy_thread']:.2f}; "
                f"its stall in ms: {', '.join(gaps)}"
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
