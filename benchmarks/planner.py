"""What planning costs: promoted blocks through the tiering planner alone, and what a loop feels of it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import uvloop

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.policies import POLICIES
from asyncoffload.core.primary import Primary
from asyncoffload.core.tickets import Mode, Ticket
from asyncoffload.core.tiering import MAX_OP_BLOCKS, TieringPlanner
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import (
    ANONYMOUS,
    DONE,
    JobResult,
    LookupResult,
    RequestContext,
    Status,
    TransferJob,
)

P = ParamSpec("P")
R = TypeVar("R")

DESCRIPTION = """\
Several callers want blocks of their own that one tier holds and the primary does not. Every planner call of their way
from opening a ticket to closing it is timed: open and extend in pieces of 128 keys, take (probes, and promotions with
their slots), the settling of probes and of promotions, and close. Times are those of the thread, so that neighbours on
a busy machine count less; the longest single call is what an event loop would have to wait for. The yardstick, a look
into a dictionary of 100,000 keys, says how fast the machine is at present.

Then the same traffic goes through TieringOffloadingManager on uvloop, over a tier that answers at once, which is the
worst case: nothing ever waits for a disk. What all of its planning and settling takes within one iteration of the loop
is summed up, iteration by iteration.

Each round starts with an empty primary and a collected heap. Figures are medians over the rounds; --no-gc keeps the
garbage collector out of the longest calls."""


@dataclass(frozen=True)
class Figure:
    """One kind of planner call: microseconds per block, and its longest call in microseconds."""

    measured: str
    us_per_block: float
    longest_us: float


class Stopwatch:
    """Sums up what the calls of each kind took."""

    def __init__(self) -> None:
        self.total: defaultdict[str, float] = defaultdict(float)
        self.longest: defaultdict[str, float] = defaultdict(float)

    def time(self, kind: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call and note how long it took."""
        started = time.thread_time()
        result = call(*args, **kwargs)
        took = time.thread_time() - started
        self.total[kind] += took
        self.longest[kind] = max(self.longest[kind], took)
        return result


def yardstick(keys: int = 100_000) -> float:
    """Microseconds of one look into a dictionary on this machine at present, to compare figures by."""
    known = dict.fromkeys(_keys(0, keys))
    wanted = list(known)
    started = time.thread_time()
    found = len(list(takewhile(known.__contains__, wanted)))
    return (time.thread_time() - started) / found * 1e6


SETTLING = {OpKind.PROBE: "settle probe", OpKind.PROMOTE: "settle promotion"}


def one_round(callers: int, blocks: int, *, policy: str, hints: bool) -> Stopwatch:
    """Promote every block of every caller once."""
    watch = Stopwatch()
    primary = Primary(BlockTable(2 * callers * blocks, POLICIES[policy](), n_tiers=1))
    planner = TieringPlanner(primary, [lambda _: hints], promotion_blocks=4 * MAX_OP_BLOCKS, cascade_blocks=0)
    tickets: list[Ticket] = []
    for caller in range(callers):
        keys = _keys(caller * blocks, blocks)
        ticket = watch.time("open", planner.open, keys[:MAX_OP_BLOCKS], Mode.HOLD)
        for start in range(MAX_OP_BLOCKS, blocks, MAX_OP_BLOCKS):
            watch.time("open", planner.extend, ticket, keys[start : start + MAX_OP_BLOCKS])
        tickets.append(ticket)
    running: list[Op] = []
    while True:
        running += [op for op in watch.time("take", planner.take, MAX_OP_BLOCKS) if isinstance(op, Op)]
        if not running:
            break
        op = running.pop(0)
        watch.time(SETTLING[op.kind], planner.settle, op.op_id, [Status.DONE] * len(op.keys))
        watch.time("take woken", planner.take_woken)
    if not all(ticket.done and ticket.pos == blocks for ticket in tickets):
        raise AssertionError("every block should have been promoted")
    for ticket in tickets:
        watch.time("close", planner.close, ticket)
    return watch


class Instant(SecondaryTierManager):
    """A tier that has every block and moves nothing."""

    tier_type = "instant"

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        return [LookupResult.HIT] * len(keys)

    async def load(self, job: TransferJob) -> JobResult:
        return JobResult(job.job_id, job.keys, [DONE] * len(job.keys), self.tier_type)

    store = load

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Nothing to close."""


class Timed(TieringOffloadingManager):
    """Notes what planning and settling take in each iteration of the loop, in seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.iterations = [0.0]

    def _plan(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        with self._noted():
            return super()._plan(call, *args, **kwargs)

    def _pump(self) -> None:
        with self._noted():
            super()._pump()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            self.iterations[-1] += time.thread_time() - started


async def iterations(callers: int, blocks: int, policy: str) -> list[float]:
    """Promote every block of every caller through the manager; seconds of planning per iteration of the loop."""
    region = HostRegion(2 * callers * blocks, 64)
    try:
        manager = Timed(region, [Instant()], policy=POLICIES[policy]())
        loop, ticking = asyncio.get_running_loop(), True

        def tick() -> None:
            if ticking:
                manager.iterations.append(0.0)
                loop.call_soon(tick)

        async def call(caller: int) -> None:
            keys = _keys(caller * blocks, blocks)
            async with manager.loading(keys) as lease:
                assert len(lease.keys) == blocks

        tick()
        await asyncio.gather(*map(call, range(callers)))
        ticking = False
        await manager.aclose()
        return [seconds for seconds in manager.iterations if seconds]
    finally:
        region.close()


def figures(watches: list[Stopwatch], blocks: int) -> list[Figure]:
    """Medians over the rounds."""
    kinds = list(watches[0].total)
    lines = [
        Figure(
            kind,
            statistics.median(watch.total[kind] for watch in watches) / blocks * 1e6,
            statistics.median(watch.longest[kind] for watch in watches) * 1e6,
        )
        for kind in kinds
    ]
    whole = Figure(
        "in all",
        statistics.median(sum(watch.total.values()) for watch in watches) / blocks * 1e6,
        statistics.median(max(watch.longest.values()) for watch in watches) * 1e6,
    )
    return [*lines, whole]


def _keys(start: int, count: int) -> list[OffloadKey]:
    return [make_key(index.to_bytes(32, "big")) for index in range(start, start + count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=512, help="blocks of each caller")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="lru")
    parser.add_argument("--hints", action="store_true", help="the tier knows what it holds, so nothing is probed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-gc", action="store_true", help="switch the garbage collector off within a round")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    watches: list[Stopwatch] = []
    for number in range(options.rounds + 1):
        gc.collect()
        if options.no_gc:
            gc.disable()
        watch = one_round(options.callers, options.blocks, policy=options.policy, hints=options.hints)
        gc.enable()
        if number:  # the first one warms up
            watches.append(watch)
    stretches = []
    for _ in range(options.rounds):
        gc.collect()
        if options.no_gc:
            gc.disable()
        stretches.append(uvloop.run(iterations(options.callers, options.blocks, options.policy)))
        gc.enable()
    lines = figures(watches, options.callers * options.blocks)
    print(f"{options.callers} callers x {options.blocks} blocks, {options.policy}, Python {sys.version.split()[0]}")
    print(f"yardstick: {yardstick():.3f} us")
    print(f"{'':18}{'us per block':>14}{'longest, us':>14}")
    for line in lines:
        print(f"{line.measured:18}{line.us_per_block:>14.2f}{line.longest_us:>14.0f}")
    for name, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
        each = [sorted(some)[min(len(some) - 1, int(share * len(some)))] for some in stretches]
        print(f"planning in one iteration of the loop, {name:8}{statistics.median(each) * 1e6:>8.0f} us")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")


if __name__ == "__main__":
    main()
