"""What users of a vLLM engine feel: time to first token, throughput, and what our calls cost the engine's thread."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.integrations.vllm.engine import Engine, running, tiering
from tests.integrations.vllm.model import TOKENS_PER_BLOCK, Shape, make_model

DESCRIPTION = """\
Real engines on the CPU, each in processes of its own, side by side and in turns: one without offloading, ours from host
memory, ours from disk, and vLLM's own tiering from host memory, and with its fs tier from disk (a worker of the tests
copies for it, at once and on the engine's thread, since vLLM has none for the CPU).

  ttft        seconds from the request to its first token, for prompts of which nine tenths are offloaded and not on the
              device: with large blocks, and a model of which prefill costs real time; and with small blocks, and one
              of which it costs little, so that loading counts, as it does on an accelerator
  throughput  seconds per token of prompts and answers, 16 requests at a time, that share prefixes beyond what the
              device holds; and how many tokens of a prompt were not computed, in the mean of each round
  misses      prompts that never hit anything: the processor time inside our manager and worker on the engine's thread,
              as a share of the engine's time

Where blocks come from disk, the primary is too small for the prompts that take turns, so that every one is promoted.
Figures are medians over the rounds; ratios are medians of the rounds' ratios, with their quartiles.

    PYTHONPATH=. vllm-env/bin/python benchmarks/vllm_engine.py --dir /mnt/nvme

Five engines on a small machine take their time. For two of them, in more rounds:

    ... --only throughput --side "ours, disk" --side "vLLM, disk" --rounds 9
"""

CLIENTS = 16

SIDES = ("recomputed", "ours, host", "ours, disk", "vLLM, host", "vLLM, disk")


@dataclass(frozen=True)
class Load:
    """A model and the prompts that it gets.

    Attributes:
        shape: of the model.
        prompt_tokens: of one prompt; nine tenths are shared with the prompt of the same number before.
        prompts: how many take turns.
    """

    name: str
    shape: Shape
    prompt_tokens: int
    prompts: int

    @property
    def prompt_blocks(self) -> int:
        return self.prompt_tokens // TOKENS_PER_BLOCK

    def prompt(self, number: int, turn: int) -> list[int]:
        """Nine tenths by the number, the rest by the turn."""
        shared = self.prompt_blocks * 9 // 10 * TOKENS_PER_BLOCK
        letters = random.Random(number)
        last = random.Random(f"{number} {turn}")
        return [letters.randrange(4, 250) for _ in range(shared)] + [
            last.randrange(4, 250) for _ in range(self.prompt_tokens - shared)
        ]


LARGE = Load(
    "large blocks", Shape(hidden=1024, layers=8, heads=8, kv_heads=4, head_dim=128, intermediate=2816), 2048, 3
)
SMALL_SHAPE = Shape(hidden=128, heads=2, intermediate=256)
SMALL = Load("small blocks", SMALL_SHAPE, 4096, 3)


def connectors(load: Load, root: Path) -> dict[str, Mapping[str, Any] | None]:
    """The sides, and what each says in its configuration."""
    block = load.shape.bytes_per_block
    ample, scarce = 8 * load.prompts * load.prompt_blocks, load.prompt_blocks * 3 // 2
    ours = {"spec_name": "AsyncOffloadingSpec", "spec_module_path": "asyncoffload.integrations.vllm"}
    says: list[Mapping[str, Any] | None] = [
        None,
        {**ours, "cpu_bytes_to_use": ample * block},
        {
            **ours,
            "cpu_bytes_to_use": scarce * block,
            "secondary_tiers": [{"type": "fs", "root_dir": str(root / "ours")}],
        },
        tiering(cpu_bytes_to_use=ample * block),
        tiering({"type": "fs", "root_dir": str(root / "vllm")}, cpu_bytes_to_use=scarce * block),
    ]
    return dict(zip(SIDES, says, strict=True))


def settings_for(load: Load, **settings: Any) -> dict[str, Any]:
    """Arguments of an engine that takes the load's prompts, and whose device holds little more than one of them."""
    room = load.prompt_tokens + 2 * TOKENS_PER_BLOCK
    memory = (load.prompt_blocks + 8) * load.shape.bytes_per_block
    return {"max_model_len": room, "max_num_batched_tokens": room, "kv_cache_memory_bytes": memory, **settings}


@contextmanager
def engines(load: Load, root: Path, sides: Sequence[str], **settings: Any) -> Iterator[dict[str, Engine]]:
    """One engine per side, all of them at once."""
    model = make_model(root / "model", load.shape)
    with ExitStack() as stack:
        yield {
            side: stack.enter_context(running(model, connector, processes=3, **settings_for(load, **settings)))
            for side, connector in connectors(load, root).items()
            if side in sides
        }


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def time_to_first_token(load: Load, sides: Sequence[str], root: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds by side, and what each side loaded."""
    took: dict[str, list[float]] = {}
    cached: dict[str, set[int]] = {}
    with engines(load, root, sides, max_num_seqs=1) as running_ones:
        for turn in range(rounds + 1):
            for number in range(load.prompts):
                prompt = load.prompt(number, turn)
                for side, engine in in_turns(running_ones, turn + number):
                    engine.forget_device()
                    answers: list[Any] = []
                    took_now = seconds_of(lambda: answers.extend(engine.complete([prompt], 1)))  # noqa: B023
                    engine.settle()
                    if turn:
                        took.setdefault(side, []).append(took_now)
                        cached.setdefault(side, set()).add(answers[0].cached)
    return [figure(f"ttft, {load.name}, {side}", values, took, sorted(cached[side])) for side, values in took.items()]


def throughput(load: Load, sides: Sequence[str], root: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds per token by side, with requests that share prefixes, and what each side loaded."""
    took: dict[str, list[float]] = {}
    cached: dict[str, set[int]] = {}
    tokens = 2 * CLIENTS * (load.prompt_tokens + 8)
    with engines(load, root, sides, max_num_seqs=CLIENTS) as running_ones:
        for turn in range(rounds + 1):
            prompts = [load.prompt(number % (2 * load.prompts), turn * 100 + number) for number in range(2 * CLIENTS)]
            for side, engine in in_turns(running_ones, turn):
                answers: list[Any] = []
                took_now = seconds_of(lambda: answers.extend(engine.complete(prompts, 8)))  # noqa: B023
                engine.forget_device()
                if turn:
                    took.setdefault(side, []).append(took_now / tokens)
                    cached.setdefault(side, set()).add(sum(answer.cached for answer in answers) // len(answers))
    return [figure(f"throughput, {side}", values, took, sorted(cached[side])) for side, values in took.items()]


def in_turns(sides: Mapping[str, Engine], turn: int) -> list[tuple[str, Engine]]:
    """All sides, with another one first in each turn, so that none has the advantage of its place."""
    ordered = list(sides.items())
    first = turn % len(ordered)
    return ordered[first:] + ordered[:first]


class Meter:
    """Processor seconds of this thread inside some objects' methods; what one calls of another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watch(self, target: Any) -> None:
        """Count what public methods of an object take from now on."""
        for name in dir(target):
            method = None if name.startswith("_") else getattr(target, name)
            if callable(method):
                setattr(target, name, partial(self._timed, method))

    def _timed(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._depth += 1
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.thread_time() - began


def misses(load: Load, root: Path, rounds: int) -> list[dict[str, Any]]:
    """The share of the engine's time that our calls take where nothing is ever found."""
    shares = []
    model, connector = make_model(root / "model", load.shape), connectors(load, root)["ours, disk"]
    with running(model, connector, **settings_for(load)) as engine:
        meter = Meter()
        meter.watch(engine.manager)
        meter.watch(engine.worker)
        for turn in range(rounds):
            meter.seconds = 0.0
            prompts = [load.prompt(1_000_000 + 2 * turn + number, turn) for number in range(2)]
            took = seconds_of(partial(engine.complete, prompts, 24))
            shares.append(meter.seconds / took)
            engine.settle()
    low, middle, high = quartiles(shares)
    return [{"what": "our calls, share of the engine's time", "median": middle, "low": low, "high": high, "n": rounds}]


def figure(
    what: str, values: Sequence[float], all_: Mapping[str, Sequence[float]], cached: list[int]
) -> dict[str, Any]:
    """A median, and its ratios to the other sides of the same rounds: above 1 where the other took longer."""
    ratios = {
        side: quartiles([other / mine for other, mine in zip(others, values, strict=True)])
        for side, others in all_.items()
        if others is not values
    }
    low, middle, high = quartiles(values)
    return {
        "what": what,
        "median": middle,
        "low": low,
        "high": high,
        "cached": cached,
        "ratios": ratios,
        "n": len(values),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], statistics.median(ordered), ordered[len(ordered) * 3 // 4]


def show(figures: Sequence[Mapping[str, Any]]) -> None:
    for line in figures:
        print(f"{line['what']:44} {line['median']:10.6f} ({line['low']:.6f}..{line['high']:.6f}) n={line['n']}", end="")
        print(f"  cached {line['cached']}" if line.get("cached") else "")
        for side, (low, middle, high) in line.get("ratios", {}).items():
            print(f"{'':8}{side:14} takes {middle:6.2f} as long ({low:.2f}..{high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a directory on the disk under test")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["ttft-large", "ttft-small", "throughput", "misses"])
    parser.add_argument("--side", action="append", choices=SIDES, help="these only; by default all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    sides = options.side or SIDES
    measurements = {
        "ttft-large": partial(time_to_first_token, LARGE, sides),
        "ttft-small": partial(time_to_first_token, SMALL, sides),
        "throughput": partial(throughput, SMALL, sides),
        "misses": partial(misses, LARGE),
    }
    figures: list[dict[str, Any]] = []
    for name, measure in measurements.items():
        if options.only and name not in options.only:
            continue
        root = Path(tempfile.mkdtemp(prefix="vllm_engine_bench.", dir=os.path.abspath(options.dir)))
        try:
            lines = measure(root, options.rounds)
        finally:
            shutil.rmtree(root)
        show(lines)
        figures += lines
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
