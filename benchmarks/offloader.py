"""The whole stack beside its own parts alone: what ``Offloader`` costs over a bare copy and over a bare tier."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import uvloop

from asyncoffload import (
    CPULoadStoreSpec,
    DeviceHostHandler,
    FileSystemTierManager,
    GPULoadStoreSpec,
    HostRegion,
    KVLayout,
    Offloader,
    OffloadKey,
    TransferJob,
    make_key,
)
from asyncoffload.cli.loop_lag import LoopLag

LAYERS = 8

DESCRIPTION = """\
Four movements of one request, each through Offloader and through the part of it that moves the bytes:

  store     device to host memory                beside one transfer of the bare handler
  load      host memory to device                beside one transfer of the bare handler
  to disk   store and settle, through the tier   beside one store job of the bare file system tier
  from disk load with an empty primary           beside one load job of the bare file system tier

Each round runs both in turns; figures are medians over the rounds, the ratio is the median of the rounds' ratios, and
its spread runs from the 10th to the 90th percentile. The loop's lag is that of a coroutine that sleeps 5 ms again and
again while Offloader works. Put --dir on the disk that you mean to measure."""

Run = Callable[[Sequence[OffloadKey]], Awaitable[None]]


@dataclass(frozen=True)
class Figure:
    """One line of the table: GB/s through the whole stack and through the part alone."""

    block_kib: int
    measured: str
    whole: float
    part: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    lag_p50_ms: float
    lag_p99_ms: float


class Bench:
    """One block size: an offloader, and a bare handler and tier over memory of their own."""

    def __init__(self, block_bytes: int, arguments: argparse.Namespace, root: Path) -> None:
        self.blocks = max(64, arguments.mib * (1 << 20) // block_bytes)
        self.block_bytes = block_bytes
        self.root = root
        self.kv_caches = [
            torch.randint(0, 255, (self.blocks, block_bytes // LAYERS), dtype=torch.uint8) for _ in range(LAYERS)
        ]
        self.rounds: int = arguments.rounds
        self._chance = random.Random(arguments.seed)

    def keys(self) -> list[OffloadKey]:
        """Blocks that nobody has seen."""
        return [make_key(self._chance.randbytes(16)) for _ in range(self.blocks)]

    def offloader(self, *, disk: bool) -> Offloader:
        """A stack whose primary has room for two requests."""
        tiers = [{"type": "fs", "root_dir": self.root, "max_queued_bytes": "8GiB"}] if disk else []
        settings = {
            "host_bytes": 2 * self.blocks * self.block_bytes,
            "tiers": tiers,
            "cascade_blocks": self.blocks,
            "model": "whole",
        }
        return Offloader(settings, kv_caches=self.kv_caches)

    async def in_memory(self) -> list[Figure]:
        """Device to host memory and back."""
        device = range(self.blocks)
        async with self.offloader(disk=False) as offloader:
            region = HostRegion(self.blocks, self.block_bytes)
            handler = DeviceHostHandler([self.kv_caches], region, offloader.layout)

            async def store(keys: Sequence[OffloadKey]) -> None:
                require((await offloader.store(keys, device)).stored == len(keys))

            async def load(keys: Sequence[OffloadKey]) -> None:
                require((await offloader.load(keys, device)).blocks == len(keys))

            async def bare_store(_: Sequence[OffloadKey]) -> None:
                await handler.transfer(0, (GPULoadStoreSpec(device), CPULoadStoreSpec(device)))

            async def bare_load(_: Sequence[OffloadKey]) -> None:
                await handler.transfer(0, (CPULoadStoreSpec(device), GPULoadStoreSpec(device)))

            requests = [self.keys() for _ in range(self.rounds + 1)]
            stores = await self.compare("store", store, bare_store, requests)
            # The last request is resident.
            loads = await self.compare("load", load, bare_load, [requests[-1]] * (self.rounds + 1))
            await handler.aclose()
        return [stores, loads]

    async def on_disk(self) -> list[Figure]:
        """Device to disk and back."""
        device = range(self.blocks)
        requests = [self.keys() for _ in range(self.rounds + 1)]
        region = HostRegion(self.blocks, self.block_bytes)
        async with self.offloader(disk=True) as offloader:
            tier = self.bare_tier(offloader.layout, region)

            async def store(keys: Sequence[OffloadKey]) -> None:
                require((await offloader.store(keys, device)).stored == len(keys))
                await offloader.settle()

            async def bare_store(keys: Sequence[OffloadKey]) -> None:
                require((await tier.store(TransferJob(keys, device))).success)

            stores = await self.compare("to disk", store, bare_store, requests)
            require(offloader.stats().tiers["fs"]["shed"] == 0)
        async with self.offloader(disk=True) as offloader:

            async def load(keys: Sequence[OffloadKey]) -> None:
                require((await offloader.load(keys, device)).by_tier == {"fs": len(keys)})

            async def bare_load(keys: Sequence[OffloadKey]) -> None:
                require((await tier.load(TransferJob(keys, device))).success)

            loads = await self.compare("from disk", load, bare_load, requests)
            await tier.aclose()
        return [stores, loads]

    def bare_tier(self, layout: KVLayout, region: HostRegion) -> FileSystemTierManager:
        """A tier with the threads that the offloader's has, in a directory beside."""
        from asyncoffload.tiers.fs.sizing import auto_io_threads

        threads = auto_io_threads(layout.block_bytes)
        return FileSystemTierManager(
            layout, region.view, "bare", self.root / "bare", threads, threads, max_queued_bytes=None
        )

    async def compare(self, measured: str, whole: Run, part: Run, requests: Sequence[Sequence[OffloadKey]]) -> Figure:
        """Paired rounds, the first of them to warm up."""
        lag = LoopLag()
        pairs: list[tuple[float, float]] = []
        for index, keys in enumerate(requests):
            seconds = {}
            for run in (whole, part) if index % 2 else (part, whole):
                if run is whole:
                    async with lag.sampling():
                        seconds[run] = await timed(run, keys)
                else:
                    seconds[run] = await timed(run, keys)
            pairs.append((seconds[whole], seconds[part]))
        del pairs[0]
        ratios = [of_part / of_whole for of_whole, of_part in pairs]
        tenths = statistics.quantiles(ratios, n=10)
        late = statistics.quantiles(lag.samples or [0.0, 0.0], n=100)
        gigabytes = self.blocks * self.block_bytes / 1e9
        return Figure(
            self.block_bytes >> 10,
            measured,
            gigabytes / statistics.median(pair[0] for pair in pairs),
            gigabytes / statistics.median(pair[1] for pair in pairs),
            statistics.median(ratios),
            tenths[0],
            tenths[-1],
            late[49] * 1e3,
            late[98] * 1e3,
        )


async def timed(run: Run, keys: Sequence[OffloadKey]) -> float:
    """Seconds that one request takes."""
    start = time.perf_counter()
    await run(keys)
    return time.perf_counter() - start


def require(as_expected: bool) -> None:
    """A benchmark that does less than it says is worse than none."""
    if not as_expected:
        raise AssertionError("the benchmark's request did not move all of its blocks from where it should")


def print_table(figures: Sequence[Figure]) -> None:
    """What was measured, for the eye."""
    print(
        f"{'block':>10} {'measured':10}{'whole GB/s':>11}{'part GB/s':>11}{'ratio':>7}   p10..p90   loop lag p50, p99"
    )
    for line in figures:
        print(
            f"{line.block_kib:6} KiB {line.measured:10}{line.whole:11.2f}{line.part:11.2f}{line.ratio:7.2f}"
            f"   {line.ratio_p10:.2f}..{line.ratio_p90:.2f}   {line.lag_p50_ms:.2f} ms, {line.lag_p99_ms:.2f} ms"
        )


async def measure(arguments: argparse.Namespace) -> None:
    """The whole benchmark."""
    figures: list[Figure] = []
    for kib in arguments.block_kib:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as root:
            bench = Bench(kib << 10, arguments, Path(root))
            figures += await bench.in_memory()
            figures += await bench.on_disk()
    loop = type(asyncio.get_running_loop()).__module__.split(".")[0]
    print(f"{arguments.mib} MiB a request, {arguments.rounds} rounds, {loop}, garbage collection as it is by default")
    print_table(figures)
    if arguments.json:
        report = {"python": sys.version.split()[0], "loop": loop, "mib": arguments.mib, "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps(report | {"figures": list(map(asdict, figures))}, indent=2) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block-kib", type=int, nargs="+", default=[64, 1024], help="block sizes (default 64 1024)")
    parser.add_argument("--mib", type=int, default=128, help="bytes of a request (default %(default)s MiB)")
    parser.add_argument("--rounds", type=int, default=11, help="paired rounds (default %(default)s)")
    parser.add_argument("--dir", type=Path, help="where files go, removed afterwards (default: a temporary directory)")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    run = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    run(measure(arguments))


if __name__ == "__main__":
    main()
