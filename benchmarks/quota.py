"""A bounded file system tier: whether it keeps its bound, and what keeping it costs."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fs_sides import Job, Memory, Ours, Vllm, new_keys
from fs_tier import JOB_BLOCKS, LATENCY_DEPTH, MIB, Figure, in_jobs, quantile, save, spread
from raw_io import read_file, remove_tree, write_file

from asyncoffload.cli.fs_bench.raw import BareThreads
from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.quota import MAX_SLICE
from asyncoffload.types import KVGroup, KVLayout, Status, TransferJob

DESCRIPTION = """\
Measures, on one disk; a ratio is the median of the rounds' ratios, its spread the quartiles. 1 GB is 1e9 bytes.

  bound        four processes store at full speed below one quota. They are stopped (SIGSTOP) again and again, and what
               lies on disk is counted: how far above the quota it ever was, in slices of 64 MiB at most
  throughput   storing 1 MiB blocks with the quota full and evicting, beside storing with room
  latency      p99 of loads of 16 x 1 MiB that arrive at a fifth of the read ceiling, while stores never end and every
               block that is stored evicts another one; beside vLLM's tier, which evicts nothing
  many         a root of a million blocks: how soon a load is served, how long the count takes, and p99 of loads
               during the count beside p99 after it

Two hundred kills: ASYNCOFFLOAD_KILLS=200 pytest -m slow tests/tiers/fs/test_shared_kills.py

vLLM's tier is measured where vLLM is installed, see fs_tier.py. Needs up to 8 GB of disk below --dir, and gives them
back; `many` needs as many inodes as blocks."""

GIB = 1 << 30
PROCESSES = 4
SHED_PAUSE = 0.002
"""Seconds after which a block that was shed is offered again."""


class Bounded(Ours):
    """Ours, with a quota; what is shed is offered again."""

    def __init__(self, memory: Memory, root: str, quota: int, threads: int | None = None) -> None:
        self.quota = quota
        super().__init__(memory, root, threads)

    def _open(self) -> None:
        n = self.threads
        self.tier = FileSystemTierManager(self.layout, self.memory.view, "fs", self.root, n, n, quota=self.quota)
        self.run(self.tier.start())

    def store(self, jobs: Sequence[Job]) -> float:
        return self.run(self.store_all(jobs))

    async def store_all(self, jobs: Sequence[Job]) -> float:
        """Seconds in which all blocks were stored, with as many jobs at a time as a manager has under way."""
        began = time.perf_counter()
        backlog = iter(jobs)
        await asyncio.gather(*(self._store_some(backlog) for _ in range(LATENCY_DEPTH)))
        return time.perf_counter() - began

    async def _store_some(self, backlog: Iterator[Job]) -> None:
        for keys, slots in backlog:
            left = list(zip(keys, slots, strict=True))
            while left:
                result = await self.tier.store(TransferJob([key for key, _ in left], [slot for _, slot in left]))
                assert all(outcome.status in (Status.DONE, Status.SHED) for outcome in result.outcomes), result
                left = [each for each, outcome in zip(left, result.outcomes, strict=True) if not outcome.ok]
                if left:
                    await asyncio.sleep(SHED_PAUSE)

    def load_beside_stores(self, stores: Sequence[Job], depth: int, loads: Sequence[Job], gap: float) -> list[float]:
        async def both() -> list[float]:
            backlog = iter(stores)
            writers = [asyncio.create_task(self._store_some(backlog)) for _ in range(depth)]
            kept = [key for keys, _ in loads[:JOB_BLOCKS] for key in keys]
            keeping = asyncio.create_task(self._keep(kept))
            readers: list[asyncio.Task[float]] = []
            for job in loads:
                await asyncio.sleep(gap)
                if any(writer.done() for writer in writers):
                    break
                readers.append(asyncio.create_task(timed_load(self.tier, job)))
            seconds = await asyncio.gather(*readers)
            await asyncio.gather(*writers)
            keeping.cancel()
            await asyncio.wait([keeping])
            return seconds

        return self._runner.run(both())

    async def _keep(self, keys: Sequence[OffloadKey]) -> None:
        """Use blocks again and again, as neighbours would: here the whole quota is stored within seconds."""
        directory = os.path.join(self.root, directory_name(self.layout))
        while True:
            await asyncio.to_thread(renew, [block_path(directory, key) for key in keys])
            await asyncio.sleep(0.2)


def renew(paths: Sequence[str]) -> None:
    for path in paths:
        os.utime(path)


async def timed_load(tier: FileSystemTierManager, job: Job) -> float:
    """Seconds of a load that finds everything."""
    began = time.perf_counter()
    (await tier.load(TransferJob(*job))).raise_for_failures()
    return time.perf_counter() - began


class Bench:
    """Everything that the measurements share."""

    def __init__(self, root: str, rounds: int) -> None:
        self.root, self.rounds = root, rounds
        self.figures: list[Figure] = []

    def report(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure, flush=True)

    def bound(self, quota: int = 2 * GIB, seconds: float = 20.0) -> None:
        root = os.path.join(self.root, "bound")
        os.mkdir(root)
        command = [sys.executable, __file__, "--child", root, str(quota)]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        above, peak, began, stops = 0, 0, time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            time.sleep(0.1)
            for child in children:
                child.send_signal(signal.SIGSTOP)
            nbytes = bytes_below(root)
            for child in children:
                child.send_signal(signal.SIGCONT)
            above, peak, stops = max(above, nbytes - quota), max(peak, nbytes), stops + 1
        for child in children:
            child.send_signal(signal.SIGINT)
        reports = [json.loads(child.communicate()[0]) for child in children]
        remove_tree(root)
        stored = sum(report["stored"] for report in reports)
        evicted = sum(report["evicted"] for report in reports)
        note = (
            f"{stored * MIB / 1e9 / seconds:.2f} GB/s stored, {evicted} blocks evicted, "
            f"shed {sum(report['shed'] for report in reports)}, {stops} counts, peak {peak / quota:.3f} of the quota"
        )
        self.report(Figure("quota under 4 processes, most above it", above / MAX_SLICE, "slices", note=note))

    def throughput(self, quota: int = 3 * GIB, total: int = 3 * GIB) -> None:
        n_slots = LATENCY_DEPTH * JOB_BLOCKS
        memory = Memory(n_slots, MIB)
        n = total // MIB
        slots = [index % n_slots for index in range(n)]
        seconds: dict[str, list[float]] = {"full": [], "room": []}
        evicted = 0
        for round_ in range(self.rounds):
            for name in list(seconds)[:: 1 if round_ % 2 else -1]:
                side = Bounded(memory, os.path.join(self.root, name), quota if name == "full" else 1 << 40)
                side.store(in_jobs(new_keys(n), slots))
                before = side.tier.stats()["evicted_files"]
                seconds[name].append(side.store(in_jobs(new_keys(n), slots)))
                if name == "full":
                    evicted += int(side.tier.stats()["evicted_files"] - before)
                    assert bytes_below(side.root) <= quota
                side.close()
                remove_tree(side.root)
        ratios = [room / full for full, room in zip(seconds["full"], seconds["room"], strict=True)]
        value = total / 1e9 / statistics.median(seconds["full"])
        note = f"{evicted // self.rounds} blocks evicted in a round of {n}"
        self.report(Figure("store with the quota full", value, "GB/s", "with room", *spread(ratios), note=note))

    def latency(self, quota: int = 2 * GIB, total: int = 3 * GIB) -> None:
        n_load = 16 * JOB_BLOCKS
        n_slots = 4 * n_load + LATENCY_DEPTH * JOB_BLOCKS
        memory = Memory(n_slots, MIB)
        sides: dict[str, Bounded | Vllm] = {"ours": Bounded(memory, os.path.join(self.root, "ours"), quota)}
        if importlib.util.find_spec("vllm") is not None:
            sides["vllm"] = Vllm(memory, os.path.join(self.root, "vllm"))
        ours = sides["ours"]
        assert isinstance(ours, Bounded)
        gap = JOB_BLOCKS * MIB / (self._ceiling(ours) / 5)
        print(f"  a load every {1e3 * gap:.1f} ms")
        seconds: dict[str, list[list[float]]] = {name: [] for name in sides}
        spare = [4 * n_load + index % (n_slots - 4 * n_load) for index in range(total // MIB)]
        evicted = 0.0
        for round_ in range(self.rounds):
            for name in list(sides)[:: 1 if round_ % 2 else -1]:
                side, keys = sides[name], new_keys(n_load)
                loads = in_jobs(keys, range(n_load))
                if isinstance(side, Bounded):
                    side.store(in_jobs(new_keys(quota // MIB), spare[: quota // MIB]))
                side.store(loads)
                if isinstance(side, Bounded):
                    before = side.tier.stats()["evicted_files"]
                stores = in_jobs(new_keys(len(spare)), spare)
                seconds[name].append(side.load_beside_stores(stores, LATENCY_DEPTH, loads * 100, gap))
                if isinstance(side, Bounded):
                    evicted += side.tier.stats()["evicted_files"] - before
                side.forget()
        for side in sides.values():
            side.close()
            remove_tree(side.root)
        pooled = {name: sorted(each for some in rounds for each in some) for name, rounds in seconds.items()}
        note = ", ".join(f"{name}: p50 {1e3 * quantile(all_, 0.5):.1f} n={len(all_)}" for name, all_ in pooled.items())
        note += f"; {evicted / self.rounds:.0f} evicted a round"
        value = 1e3 * quantile(pooled["ours"], 0.99)
        figure = Figure("load of 16 x 1 MiB, stores and evictions, p99", value, "ms", note=note)
        if "vllm" in seconds:
            each = [
                quantile(a, 0.99) / quantile(b, 0.99) for a, b in zip(seconds["ours"], seconds["vllm"], strict=True)
            ]
            figure.ratio_to, (_, figure.low, figure.high) = "vllm", spread(each)
            figure.ratio = quantile(pooled["ours"], 0.99) / quantile(pooled["vllm"], 0.99)
        self.report(figure)

    def many(self, n: int) -> None:
        memory = Memory(64 * JOB_BLOCKS, MIB)
        root = os.path.join(self.root, "many")
        side = Bounded(memory, root, 1 << 60)
        real = new_keys(64 * JOB_BLOCKS)
        side.store(in_jobs(real, range(len(real))))
        side.close()
        began = time.perf_counter()
        make_hollow_blocks(os.path.join(root, directory_name(side.layout)), n - len(real))
        print(f"  {n} blocks made in {time.perf_counter() - began:.0f} s")
        gap = JOB_BLOCKS * MIB / (self._ceiling(side) / 5)
        jobs = in_jobs(real, range(len(real)))
        seconds: dict[str, list[list[float]]] = {"during": [], "after": []}
        first, counting, scanning = [], [], []
        for _ in range(self.rounds):
            with asyncio.Runner(loop_factory=None) as runner:
                served, scanned, counted, during, after = runner.run(self._loads_during_the_count(side, jobs, gap))
            first.append(served)
            scanning.append(scanned)
            counting.append(counted)
            seconds["during"].append(during)
            seconds["after"].append(after)
        remove_tree(root)
        self.report(Figure(f"{n} blocks: first load served after", 1e3 * statistics.median(first), "ms"))
        note = f"index complete after {statistics.median(scanning):.1f} s"
        self.report(Figure(f"{n} blocks: counted after", statistics.median(counting), "s", note=note))
        p99 = {name: [quantile(some, 0.99) for some in rounds] for name, rounds in seconds.items()}
        ratios = [during / after for during, after in zip(p99["during"], p99["after"], strict=True)]
        note = ", ".join(
            f"{name}: p50 {1e3 * quantile([each for some in rounds for each in some], 0.5):.1f} "
            f"n={sum(map(len, rounds))}"
            for name, rounds in seconds.items()
        )
        value = 1e3 * statistics.median(p99["during"])
        self.report(
            Figure("  load of 16 x 1 MiB during the count, p99", value, "ms", "after", *spread(ratios), note=note)
        )

    async def _loads_during_the_count(
        self, side: Bounded, jobs: Sequence[Job], gap: float
    ) -> tuple[float, float, float, list[float], list[float]]:
        threads = side.threads
        began, scanned = time.perf_counter(), 0.0
        tier = FileSystemTierManager(side.layout, side.memory.view, "fs", side.root, threads, threads, quota=side.quota)
        async with tier:
            served = await timed_load(tier, jobs[0]) + time.perf_counter() - began
            turns = itertools.cycle(jobs)
            readers: list[asyncio.Task[float]] = []
            while not tier.stats()["counted"] or not tier.stats()["scanned"]:
                await asyncio.sleep(gap)
                readers.append(asyncio.create_task(timed_load(tier, next(turns))))
                if not scanned and tier.stats()["scanned"]:
                    scanned = time.perf_counter() - began
            counted = time.perf_counter() - began
            during = await asyncio.gather(*readers)
            await asyncio.sleep(1.0)
            readers = []
            for job in itertools.islice(turns, len(during)):
                await asyncio.sleep(gap)
                readers.append(asyncio.create_task(timed_load(tier, job)))
            return served, scanned, counted, during, await asyncio.gather(*readers)

    def _ceiling(self, side: Bounded) -> float:
        """Bytes per second that bare threads read."""
        keys = new_keys(256)
        directory = os.path.join(self.root, "raw")
        paths, slots = side.paths(directory, keys), side.memory.slots(range(len(keys)))
        BareThreads(8, write_file, paths, slots).join()
        read = BareThreads(8, read_file, paths, slots).join()
        remove_tree(directory)
        return read.bytes_per_second


def bytes_below(root: str) -> int:
    """Bytes of the files below the directories of blocks."""
    nbytes = 0
    for path in Path(root).rglob("*_g*/*"):
        with suppress(FileNotFoundError):
            nbytes += path.stat().st_size
    return nbytes


def make_hollow_blocks(directory: str, count: int) -> None:
    """Files with the names and lengths of blocks, without bytes: enough to be found and counted."""
    for index in range(256):
        os.makedirs(f"{directory}/{index:02x}_g0", exist_ok=True)
    for _ in range(count):
        fd = os.open(block_path(directory, make_key(os.urandom(32))), os.O_WRONLY | os.O_CREAT, 0o600)
        os.truncate(fd, file_bytes(MIB))
        os.close(fd)


async def store_until_interrupted(root: str, quota: int) -> None:
    """What each of the four processes does."""
    memory = Memory(LATENCY_DEPTH * JOB_BLOCKS, MIB)
    side = Ours.__new__(Bounded)
    side.memory, side.root, side.threads, side.quota = memory, root, 4, quota
    side.layout = KVLayout("bench", "bfloat16", 16, (KVGroup((MIB,)),))
    async with FileSystemTierManager(side.layout, memory.view, "fs", root, 4, 4, quota=quota) as side.tier:
        print("ready", flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)

        async def storing(index: int) -> None:
            slots = range(index * JOB_BLOCKS, (index + 1) * JOB_BLOCKS)
            while not stop.is_set():
                await side.tier.store(TransferJob(new_keys(JOB_BLOCKS), slots))

        await asyncio.gather(*(storing(index) for index in range(8)))
        stats = side.tier.stats()
        report = {"stored": stats["store_done"], "evicted": stats["evicted_files"], "shed": stats.get("store_shed", 0)}
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a directory on the disk under test")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["bound", "throughput", "latency", "many"])
    parser.add_argument("--blocks", type=int, default=1_000_000, help="of the root with many")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "QUOTA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asyncio.run(store_until_interrupted(options.child[0], int(options.child[1])))
        return
    root = tempfile.mkdtemp(prefix="quota_bench.", dir=options.dir)
    try:
        bench = Bench(root, options.rounds)
        wanted = options.only or ["bound", "throughput", "latency", "many"]
        if "bound" in wanted:
            bench.bound()
        if "throughput" in wanted:
            bench.throughput()
        if "latency" in wanted:
            bench.latency()
        if "many" in wanted:
            bench.many(options.blocks)
    finally:
        remove_tree(root)
    save(bench.figures, options.json)


if __name__ == "__main__":
    main()
