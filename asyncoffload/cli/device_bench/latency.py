"""From the end of a transfer to the coroutine that waited for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import uvloop

from asyncoffload.cli.device_bench import aims
from asyncoffload.cli.device_bench.blocks import Mover, blocks_of
from asyncoffload.cli.device_bench.effort import KIB, Effort
from asyncoffload.cli.device_bench.figures import Figure, size_name
from asyncoffload.cli.device_bench.side import Side

_PAGE_BYTES, _LAYERS = 64 * KIB, 4
_WARM_UP = 50
"""Transfers before the measured ones, from which the poller learns how long they take."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}


def to_coroutine(side: Side, effort: Effort, loop: str) -> Iterator[Figure]:
    """Loads of less than a millisecond, one at a time, of sizes in random order, awaited on this event loop."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        late, waiting = runner.run(_lateness(side, effort))
    by_size: dict[str, float | str] = {
        f"{size_name(nbytes).replace(' ', '_')}_p50_us": float(np.median(samples)) for nbytes, samples in late.items()
    }
    samples = [one for some in late.values() for one in some]
    p50, p99 = aims.TO_COROUTINE_P50_US, aims.TO_COROUTINE_P99_US
    yield Figure.of(f"{loop}, p50", samples, "us", aim=p50, notes={**waiting, **by_size})
    yield Figure.of(f"{loop}, p99", samples, "us", aim=p99, quantile=0.99, notes={"largest_us": max(samples)})


async def _lateness(side: Side, effort: Effort) -> tuple[dict[int, list[float]], dict[str, float]]:
    """Microseconds by size, and what waiting costs while nobody measures: a share of a processor, and queries."""
    n_blocks = {nbytes: nbytes // (_PAGE_BYTES * _LAYERS) for nbytes in effort.sample_bytes}
    plan = random.Random(0).choices(effort.sample_bytes, k=effort.samples)
    late: dict[int, list[float]] = {nbytes: [] for nbytes in effort.sample_bytes}
    with blocks_of(side, page_bytes=_PAGE_BYTES, n_blocks=max(n_blocks.values()), layers=_LAYERS) as blocks:
        device, ends = side.ends(blocks.caches, blocks.region)
        mover = Mover(blocks, device)
        try:
            for nbytes in (*plan[:_WARM_UP], max(n_blocks)):
                await mover.submit("load", n_blocks=n_blocks[nbytes])
            blocks.check("load")
            wall, busy, before = time.perf_counter(), time.process_time(), mover.handler.polling()
            for nbytes in plan:
                await mover.submit("load", n_blocks=n_blocks[nbytes])
            after = mover.handler.polling()
            waiting = {
                "cpu_share": (time.process_time() - busy) / (time.perf_counter() - wall),
                "queries_each": (after.queries - before.queries) / len(plan),
                "sleeps_each": (after.sleeps - before.sleeps) / len(plan),
            }
            blocks.poison()
            for nbytes in (*plan, max(n_blocks)):
                transfer = mover.submit("load", n_blocks=n_blocks[nbytes])
                ends.mark(transfer.event)
                await transfer
                running_at = time.perf_counter()
                late[nbytes].append((running_at - ends.ended_at()) * 1e6)
            blocks.check("load")
        finally:
            await mover.aclose()
    return {nbytes: samples for nbytes, samples in late.items() if samples}, waiting
