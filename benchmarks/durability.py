"""What it costs to make blocks durable: one by one, in groups, and not at all."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from fs_sides import Memory, Ours, new_keys
from fs_tier import MIB, Figure, in_jobs, quantile, save, spread
from raw_io import remove_tree, write_file

from asyncoffload.cli.fs_bench.raw import BareThreads
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.syncing import Durability
from asyncoffload.tiers.fs.system_calls import THE_SYSTEM, SystemCalls
from asyncoffload.types import TransferJob

DESCRIPTION = """\
Measures stores of the file system tier, in rounds in which the sides take turns; a ratio is the median of the rounds'
ratios, its spread the quartiles. 1 GB is 1e9 bytes.

  none       durability="none"
  one by one as somebody would do it who has read the manual pages: fdatasync, rename, fsync of the directory and of the
             one above it, for each block, in the thread that writes it
  files      durability="fsync", where whole file systems cannot be synced
  groups     durability="fsync"
  bare       threads that write the same files without a checksum, and sync the file system once, at the end

  throughput many jobs of 16 blocks
  alone      how long a store of one block takes when nothing else is under way
  loads      p99 of loads of one block while stores never end

Some disks sync in no time: those with a battery, and those of many virtual machines. --flush-ms lets every call that
syncs take longer, as if the disk had a cache to empty."""

JOB_BLOCKS = 16
SIDES = ("none", "one by one", "files", "groups")
ALONE = 50
LOADS = 200


class Side(Ours):
    """A tier that makes blocks durable in one of the ways."""

    def __init__(self, memory: Memory, root: str, way: str, flush: float) -> None:
        self.way, self._flush = way, flush
        super().__init__(memory, root)

    def _open(self) -> None:
        durability: Durability = "fsync" if self.way in ("files", "groups") else "none"
        make_files = self._make_files
        n = self.threads
        self.tier = FileSystemTierManager(
            self.layout, self.memory.view, "fs", self.root, n, n, durability=durability, make_files=make_files
        )
        self.run(self.tier.start())

    def _make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        calls = slow_calls(self._flush, may_sync_whole=self.way == "groups")
        return BlockFiles(block_format, owner, direct=direct, calls=one_by_one(calls) if "by" in self.way else calls)

    async def alone(self) -> list[float]:
        """Seconds of stores that come one after the other."""
        seconds = []
        for key in new_keys(ALONE):
            began = time.perf_counter()
            (await self.tier.store(TransferJob([key], [0]))).raise_for_failures()
            seconds.append(time.perf_counter() - began)
        return seconds

    async def loads(self) -> list[float]:
        """Seconds of loads of one block, beside stores."""
        kept, stop = new_keys(JOB_BLOCKS), False
        (await self.tier.store(TransferJob(kept, range(JOB_BLOCKS)))).raise_for_failures()

        async def storing(first: int) -> None:
            while not stop:
                slots = range(first, first + JOB_BLOCKS)
                (await self.tier.store(TransferJob(new_keys(JOB_BLOCKS), slots))).raise_for_failures()

        writers = [asyncio.create_task(storing((1 + index) * JOB_BLOCKS)) for index in range(4)]
        seconds = []
        for index in range(LOADS):
            began = time.perf_counter()
            (await self.tier.load(TransferJob([kept[index % JOB_BLOCKS]], [0]))).raise_for_failures()
            seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.002)
        stop = True
        await asyncio.gather(*writers)
        return seconds


def slow_calls(flush: float, *, may_sync_whole: bool) -> SystemCalls:
    """The system's calls, of which those that sync take so many seconds longer."""

    def slower(call: Callable[[Any], None]) -> Callable[[Any], None]:
        def called(what: Any) -> None:
            call(what)
            time.sleep(flush)

        return called if flush else call

    return SystemCalls(
        sync_file=slower(THE_SYSTEM.sync_file),
        sync_directory=slower(THE_SYSTEM.sync_directory),
        sync_whole=slower(THE_SYSTEM.sync_whole),
        may_sync_whole=THE_SYSTEM.may_sync_whole if may_sync_whole else lambda path: False,  # noqa: ARG005
    )


def one_by_one(calls: SystemCalls) -> SystemCalls:
    """Calls that make each block durable by itself."""

    def write(fd: int, buffers: Any, offset: int) -> int:
        count = os.pwritev(fd, buffers, offset)
        calls.sync_file(fd)
        return count

    def rename(old: str, new: str, flags: int) -> None:
        THE_SYSTEM.rename(old, new, flags)
        directory = os.path.dirname(new)
        calls.sync_directory(directory)
        calls.sync_directory(os.path.dirname(directory))

    return SystemCalls(pwritev=write, rename=rename)


class Bench:
    """Everything that the measurements share."""

    def __init__(self, root: str, rounds: int, flush_ms: float) -> None:
        self.root, self.rounds, self.flush = root, rounds, flush_ms / 1e3
        self.figures: list[Figure] = []
        self._after = f", syncs {flush_ms:g} ms longer" if flush_ms else ""

    def report(self, what: str, value: float, unit: str, ratio_to: str = "", ratios: list[float] | None = None) -> None:
        figure = Figure(what + self._after, value, unit, ratio_to, *(spread(ratios) if ratios else ()))
        self.figures.append(figure)
        print(figure, flush=True)

    def measure(self, block_bytes: int, total: int) -> None:
        n, size = total // block_bytes, f"{block_bytes // 1024} KiB"
        memory = Memory(max(n, 5 * JOB_BLOCKS), block_bytes)
        sides = {way: Side(memory, os.path.join(self.root, way), way, self.flush) for way in SIDES}
        seconds: dict[str, list[float]] = {name: [] for name in (*SIDES, "bare")}
        alone: dict[str, list[float]] = {name: [] for name in SIDES}
        loads: dict[str, list[float]] = {name: [] for name in SIDES}
        for round_ in range(self.rounds):
            turn = round_ % len(seconds)
            for name in (*list(seconds)[turn:], *list(seconds)[:turn]):
                if name == "bare":
                    seconds[name].append(self._bare(sides["none"], n))
                    continue
                side = sides[name]
                seconds[name].append(side.store(in_jobs(new_keys(n), range(n))))
                alone[name].append(statistics.median(side.run(side.alone())))
                loads[name].append(quantile(sorted(side.run(side.loads())), 0.99))
                side.forget()
        for side in sides.values():
            side.close()
        gigabytes = n * block_bytes / 1e9
        for name, each in seconds.items():
            ratios = [none / some for none, some in zip(seconds["none"], each, strict=True)]
            self.report(f"store {size}, {name}", gigabytes / statistics.median(each), "GB/s", "none", ratios)
        ratios = [bare / groups for bare, groups in zip(seconds["bare"], seconds["groups"], strict=True)]
        self.report(f"store {size}, groups", gigabytes / statistics.median(seconds["groups"]), "GB/s", "bare", ratios)
        ratios = [one / groups for one, groups in zip(seconds["one by one"], seconds["groups"], strict=True)]
        speed = gigabytes / statistics.median(seconds["groups"])
        self.report(f"store {size}, groups", speed, "GB/s", "one by one", ratios)
        for name in SIDES:
            self.report(f"one store of {size} alone, {name}, p50", 1e3 * statistics.median(alone[name]), "ms")
        for name in SIDES:
            ratios = [some / none for some, none in zip(loads[name], loads["none"], strict=True)]
            what = f"load of {size} beside stores, {name}, p99"
            self.report(what, 1e3 * statistics.median(loads[name]), "ms", "none", ratios)

    def _bare(self, side: Side, n: int) -> float:
        directory = os.path.join(self.root, "bare")
        paths = side.paths(directory, new_keys(n))
        for parent in {os.path.dirname(path) for path in paths}:
            os.makedirs(parent)
        began = time.perf_counter()
        BareThreads(8, write_file, paths, side.memory.slots(range(n))).join()
        THE_SYSTEM.sync_whole(directory)
        time.sleep(self.flush)
        seconds = time.perf_counter() - began
        remove_tree(directory)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a directory on the disk under test")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flush-ms", type=float, default=0.0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="durability_bench.", dir=options.dir)
    bench = Bench(root, options.rounds, options.flush_ms)
    try:
        bench.measure(64 << 10, 128 * MIB)
        bench.measure(MIB, 384 * MIB)
    finally:
        remove_tree(root)
    save(bench.figures, options.json)


if __name__ == "__main__":
    main()
