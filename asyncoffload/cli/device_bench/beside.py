"""What others feel of the transfers: the model that computes on the device, and the threads of this process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from asyncoffload.cli.device_bench import aims
from asyncoffload.cli.device_bench.blocks import LAYERS, Mover, blocks_of, mover_of
from asyncoffload.cli.device_bench.effort import KIB, Effort
from asyncoffload.cli.device_bench.figures import RATIO, Figure, size_name
from asyncoffload.cli.device_bench.side import Compute, Side
from asyncoffload.cli.device_bench.speeds import DIRECTIONS
from asyncoffload.cli.device_bench.timing import seconds
from asyncoffload.device.base import Direction
from asyncoffload.workers.base import Transfer

PAGE_BYTES = (64 * KIB, 4 * KIB)
"""What copy engines move, and what kernels do, which take something of the compute."""

MATRIX_ROWS = 4096
_IN_FLIGHT = 3
"""Transfers that keep the link busy."""


def compute_beside(side: Side, effort: Effort, page_bytes: int) -> Iterator[Figure]:
    """Matrix products alone and beside transfers that never stop, in turns; the figure is the share of their rate."""
    n_blocks = max(1, effort.transfer_bytes // (LAYERS * page_bytes))
    with (
        side.compute(MATRIX_ROWS) as compute,
        blocks_of(side, page_bytes=page_bytes, n_blocks=n_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm(*DIRECTIONS)
        steps = steps_for(compute, effort.compute_seconds)
        for direction in DIRECTIONS:
            shares, moved, alone_seconds = [], [], []
            blocks.poison()
            for _ in effort.paced():
                alone = compute.start(steps).seconds()
                busy, rate = _beside_transfers(compute, steps, mover, direction)
                shares.append(alone / busy)
                moved.append(rate / 1e9)
                alone_seconds.append(alone)
            blocks.check(direction)
            yield Figure.of(
                f"beside {direction}s, pages of {size_name(page_bytes)}",
                shares,
                RATIO,
                aim=aims.on_cuda(side.kind, aims.COMPUTE_BESIDE_LOAD),
                notes={
                    "beside_GBps": float(np.median(moved)),
                    "alone_TFLOPS": 2e-12 * MATRIX_ROWS**3 * steps / float(np.median(alone_seconds)),
                    **mover.chosen(direction),
                },
            )


def steps_for(compute: Compute, duration: float) -> int:
    """How many products take about that many seconds."""
    compute.start(3).seconds()
    steps = 1
    while (taken := compute.start(steps).seconds()) < min(0.01, duration):
        steps *= 2
    return max(1, round(steps * duration / taken))


def _beside_transfers(compute: Compute, steps: int, mover: Mover, direction: Direction) -> tuple[float, float]:
    """Seconds of the compute, and bytes per second of the transfers beside it."""
    in_flight: deque[Transfer] = deque(mover.submit(direction) for _ in range(_IN_FLIGHT))
    begin, ended = time.perf_counter(), 0
    span = compute.start(steps)
    while not span.ended():
        mover.join(in_flight.popleft())
        ended += 1
        in_flight.append(mover.submit(direction))
    rate = ended * mover.blocks.nbytes / (time.perf_counter() - begin)
    mover.join(*in_flight)
    return span.seconds(), rate


def threads_beside(side: Side, effort: Effort, _: None) -> Iterator[Figure]:
    """The longest gap that a thread sees which reads the clock in a loop, while something else goes on.

    Beside nothing, and beside what needs no interpreter: what is lost to the processor and the memory alone; and
    beside the assignment to a slice of a memoryview, which holds the interpreter lock for the whole copy.
    """
    n_blocks = effort.transfer_bytes // (LAYERS * 64 * KIB)
    with (
        side.raw(effort.transfer_bytes) as raw,
        blocks_of(side, page_bytes=64 * KIB, n_blocks=n_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm(*DIRECTIONS)
        plain = memoryview(bytearray(2 * blocks.nbytes))

        def assign_slice() -> None:
            plain[: blocks.nbytes] = plain[blocks.nbytes :]

        blocks.poison()
        works: dict[str, Callable[[], object]] = {
            "nothing": lambda: time.sleep(0.02),
            f"a raw load ({side.raw_name})": lambda: raw.one("load"),
            "a store": lambda: mover.move("store"),
            "a load": lambda: mover.move("load"),
            "a memoryview assignment": assign_slice,
        }
        for name, work in works.items():
            yield _gap(effort, name, work, blocks.nbytes)
        blocks.check(*DIRECTIONS)


def _gap(effort: Effort, name: str, work: Callable[[], object], nbytes: int) -> Figure:
    taken, gaps = _beside_a_spinner(effort, work)
    speed = {} if name == "nothing" else {"beside_it_GBps": nbytes / float(np.median(taken)) / 1e9}
    return Figure.of(f"longest gap beside {name}", gaps, "ms", notes=speed)


def _beside_a_spinner(effort: Effort, work: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of the work, and milliseconds of the longest gap between two readings, per round."""
    longest, readings, stop = 0.0, 0, threading.Event()

    def spin() -> None:
        nonlocal longest, readings
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            readings += 1

    spinner = threading.Thread(target=spin)
    spinner.start()
    taken, gaps = [], []
    try:
        for _ in effort.paced():
            longest = 0.0
            taken.append(seconds(work))
            seen = readings
            while readings < seen + 2:  # the last gap counts once the spinner has looked again
                time.sleep(0)
            gaps.append(longest * 1e3)
    finally:
        stop.set()
        spinner.join()
    return taken, gaps
