"""What SyncOffloadingManager costs an engine's scheduler, beside vLLM's managers."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import (
    DONE,
    JobResult,
    KVGroup,
    KVLayout,
    LookupResult,
    RequestContext,
    TransferJob,
)

Keys = Sequence[OffloadKey]

DESCRIPTION = """\
Measures the calls that a scheduler makes in each of its steps, on its own thread.

lookups: microseconds per key of looking up blocks that are resident, key by key and as one batch, a step around each.
waiting: the scheduler's milliseconds per step in which every waiting request looks up all its keys and none is there
    yet: while tiers are being asked, and while promotions are under way, with a tier that never gets done.
    The first step, in which the keys are new, is told apart.
steps to hit: requests whose blocks are all in a tier: one that needs no time, then files. How many steps pass from a
    request's first lookup until all its keys are hits, and the scheduler's milliseconds per step meanwhile. A step is
    the scheduler's calls and then --step-ms that either leave the interpreter lock free, as a kernel does, or spin and
    hold it. Where they spin, the file tiers' threads mostly wait for that lock.

Sides take turns; figures are medians over rounds, with the 10th and 90th percentile. The peer is vLLM 0.32, its
CPUOffloadingManager for lookups and else its TieringOffloadingManager over its file tier; benchmarks/manager.py says
how to get an environment for it. Without vLLM ours is measured alone."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    measured: str
    side: str
    unit: str
    median: float
    p10: float
    p90: float


def figure(measured: str, side: str, unit: str, values: Sequence[float]) -> Figure:
    """Median and spread."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return Figure(measured, side, unit, statistics.median(values), tenths[0], tenths[-1])


class Side(Protocol):
    """A manager under test, as a scheduler sees it."""

    name: str

    def begin_step(self) -> None:
        """The first call of a step."""

    def look_up(self, request_id: str, keys: Keys) -> str:
        """Look up key by key until a miss: ``"hit"``, ``"wait"`` or ``"miss"``."""

    def end_step(self) -> None:
        """The last call of a step."""

    def load(self, request_id: str, keys: Keys) -> None:
        """Load blocks that are hits; the request is done."""

    def store(self, keys: Keys) -> None:
        """Store blocks, and wait until the tiers have them."""

    def close(self) -> None:
        """Give everything back."""


# ---- ours


class Idle(SecondaryTierManager):
    """A tier that has everything, and is done at once or never."""

    tier_type = "idle"

    def __init__(self, answers: bool, loads: bool) -> None:
        self._answers = answers
        self._loads = loads

    async def lookup(self, keys: Keys, ctx: RequestContext = RequestContext()) -> Sequence[LookupResult]:  # noqa: ARG002, B008
        if not self._answers:
            await asyncio.Event().wait()
        return [LookupResult.HIT] * len(keys)

    async def load(self, job: TransferJob) -> JobResult:
        if not self._loads:
            await asyncio.Event().wait()
        return JobResult(job.job_id, job.keys, [DONE] * len(job.keys), self.tier_type)

    async def store(self, job: TransferJob) -> JobResult:
        return await self.load(job)

    async def aclose(self, **_: object) -> None:
        return


class Ours:
    """SyncOffloadingManager, on a loop of its own."""

    name = "ours"

    def __init__(self, n_slots: int, block_bytes: int, tier: str, root: str) -> None:
        self._loop = LoopThread()
        self._region = HostRegion(n_slots, block_bytes)
        self._tier: SecondaryTierManager | None = None
        if tier == "fs":
            layout = KVLayout("benchmark", "bfloat16", 16, (KVGroup((block_bytes,)),))

            async def start() -> SecondaryTierManager:
                files = FileSystemTierManager(layout, self._region.view, "fs", root)
                await files.start()
                return files

            self._tier = self._loop.run(start)
        elif tier:
            self._tier = Idle(answers=tier != "probing", loads=tier == "instant")
        self.manager = SyncOffloadingManager(
            self._region, [self._tier] if self._tier else [], cascade_blocks=n_slots, loop=self._loop
        )
        self.begin_step, self.end_step = self.manager.begin_step, self.manager.end_step

    def look_up(self, request_id: str, keys: Keys) -> str:
        lookup, ctx = self.manager.lookup_block, RequestContext(request_id)
        hit, miss = LookupResult.HIT, LookupResult.MISS
        waits = False
        for key in keys:
            answer = lookup(key, ctx)
            if answer is miss:
                return "miss"
            if answer is not hit:
                waits = True
        return "wait" if waits else "hit"

    def load(self, request_id: str, keys: Keys) -> None:
        ctx = RequestContext(request_id)
        self.manager.prepare_load(keys, ctx)
        self.manager.complete_load(keys, ctx)
        self.manager.end_request(request_id)

    def store(self, keys: Keys) -> None:
        output = self.manager.prepare_store(keys)
        if output is None or len(output.keys_to_store) != len(keys):
            raise AssertionError("the benchmark's blocks should all be stored")
        self.manager.complete_store(keys)
        if self._tier:
            self.manager.drain_jobs()

    def close(self) -> None:
        if isinstance(self._tier, FileSystemTierManager):
            self.manager.shutdown()
            self._loop.run(self._tier.aclose)
        self._loop.stop()


# ---- vLLM's


class Peer:
    """vLLM's managers, with no worker and no engine."""

    name = "vLLM"

    def __init__(self, n_slots: int, block_bytes: int, tier: str, root: str) -> None:
        self._base: Any = importlib.import_module("vllm.v1.kv_offload.base")
        self._tiers: list[Any] = []
        if not tier:
            cpu: Any = importlib.import_module("vllm.v1.kv_offload.cpu.manager")
            self.manager: Any = cpu.CPUOffloadingManager(n_slots, cache_policy="lru")
        else:
            tiering: Any = importlib.import_module("vllm.v1.kv_offload.tiering.manager")
            region = HostRegion(n_slots, block_bytes)
            memory = SimpleNamespace(create_kv_memoryview=lambda: region.view, cleanup=lambda: None)
            primary = tiering.CPUPrimaryTierOffloadingManager(n_slots, memory, cache_policy="lru")
            self._tiers.append(peer_tier(tier, primary.get_kv_memoryview(), root))
            self.manager = tiering.TieringOffloadingManager(primary, self._tiers)
        self._contexts: dict[str, Any] = {}
        self._end = self._base.ScheduleEndContext(new_req_ids=(), preempted_req_ids=())

    def begin_step(self) -> None:
        return

    def end_step(self) -> None:
        self.manager.on_schedule_end(self._end)

    def look_up(self, request_id: str, keys: Keys) -> str:
        lookup, ctx = self.manager.lookup, self._context(request_id)
        hit, miss = self._base.LookupResult.HIT, self._base.LookupResult.MISS
        waits = False
        for key in keys:
            answer = lookup(key, ctx)
            if answer is miss:
                return "miss"
            if answer is not hit:
                waits = True
        return "wait" if waits else "hit"

    def load(self, request_id: str, keys: Keys) -> None:
        ctx = self._context(request_id)
        self.manager.prepare_load(keys, ctx)
        self.manager.complete_load(keys, ctx)
        self.manager.on_request_finished(ctx)
        del self._contexts[request_id]

    def store(self, keys: Keys) -> None:
        ctx = self._context("store")
        output = self.manager.prepare_store(keys, ctx)
        if output is None or len(output.keys_to_store) != len(keys):
            raise AssertionError("the benchmark's blocks should all be stored")
        self.manager.complete_store(keys, ctx)
        if self._tiers:
            self.end_step()
            while self.manager.has_pending_work():
                time.sleep(0.001)
                self.manager._process_finished_jobs()
                self.end_step()

    def close(self) -> None:
        for tier in self._tiers:
            tier.shutdown()

    def _context(self, request_id: str) -> Any:
        if request_id not in self._contexts:
            ctx = self._contexts[request_id] = self._base.ReqContext(req_id=request_id)
            self.manager.on_new_request(ctx)
        return self._contexts[request_id]


def peer_tier(kind: str, view: memoryview, root: str) -> Any:
    """vLLM's file tier, or its example tier made to have everything, and be done at once or never."""
    config = SimpleNamespace(
        groups=(),
        model=SimpleNamespace(name="benchmark", dtype="bfloat16"),
        cache=SimpleNamespace(tokens_per_hash=16),
        parallel=SimpleNamespace(tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=False),
        replicated_layout=False,
        canonical_layout=False,
    )
    spec = SimpleNamespace(config=config, blocks_per_chunk=1)
    if kind == "fs":
        files: Any = importlib.import_module("vllm.v1.kv_offload.tiering.fs.manager")
        return files.FileSystemTierManager(spec, view, "fs", root)
    base: Any = importlib.import_module("vllm.v1.kv_offload.base")
    example: Any = importlib.import_module("vllm.v1.kv_offload.tiering.example.manager")
    answer = base.LookupResult.RETRY if kind == "probing" else base.LookupResult.HIT
    methods: dict[str, Any] = {"lookup": lambda *_: answer}
    if kind != "instant":
        methods |= {"submit_load": lambda *_: None, "get_finished_jobs": lambda _: ()}
    tier = type("Idle", (example.ExampleSecondaryTierManager,), methods)(spec, view, "idle")
    tier.chunks = Everything()
    return tier


class Everything:
    """Contains whatever it is asked for."""

    def __contains__(self, _: object) -> bool:
        return True


Make = Callable[[int, int, str, str], Side]


# ---- what is measured


def some_keys(chance: random.Random, count: int) -> list[OffloadKey]:
    """Keys that nobody has seen."""
    return [make_key(chance.randbytes(32)) for _ in range(count)]


def measure_lookups(makes: Sequence[Make], arguments: argparse.Namespace) -> Iterator[Figure]:
    """Resident blocks, looked up alone and in a batch."""
    chance = random.Random(arguments.seed)
    sides = [make(arguments.blocks, 64, "", "") for make in makes]
    batches = [some_keys(chance, arguments.batch) for _ in range(arguments.blocks // arguments.batch)]
    for side in sides:
        for keys in batches:
            side.store(keys)
    times: dict[tuple[str, str], list[float]] = {}

    def timed(side: Side, how: str, call: Callable[[], object], keys: Keys) -> None:
        start = time.perf_counter()
        if how == "no step":
            found = call()
        else:
            side.begin_step()
            found = call()
            side.end_step()
        took = (time.perf_counter() - start) / len(keys) * 1e6
        if found not in ("hit", len(keys)):
            raise AssertionError("the benchmark's blocks should all be resident")
        times.setdefault((how, side.name), []).append(took)

    for turn in range(arguments.rounds):
        keys = chance.choice(batches)
        for side in sides if turn % 2 else reversed(sides):
            side.begin_step()
            side.look_up("r", keys)
            side.end_step()
            timed(side, "alone", partial(side.look_up, "r", keys), keys)
            if isinstance(side, Ours):
                timed(side, "batch", partial(side.manager.lookup, keys), keys)
                timed(side, "no step", partial(side.look_up, "r", keys), keys)
                side.manager.end_request("r")
    names = {"alone": "lookup, alone", "batch": "lookup, batch", "no step": "lookup, alone, outside of a step"}
    for (how, name), values in sorted(times.items()):
        yield figure(names[how], name, "us/key", values)
    for side in sides:
        side.close()


def measure_waiting(makes: Sequence[Make], arguments: argparse.Namespace) -> Iterator[Figure]:
    """The scheduler's time while nothing arrives."""
    chance = random.Random(arguments.seed)
    each = arguments.waiting // arguments.requests
    for state in ("probing", "promoting"):
        first: dict[str, list[float]] = {}
        later: dict[str, list[float]] = {}
        for turn in range(arguments.trials):
            requests = {f"r{index}": some_keys(chance, each) for index in range(arguments.requests)}
            for make in makes if turn % 2 else reversed(makes):
                side = make(2 * arguments.waiting, 64, state, "")
                for index in range(12):
                    start = time.perf_counter()
                    side.begin_step()
                    for name, keys in requests.items():
                        side.look_up(name, keys)
                    side.end_step()
                    took = (time.perf_counter() - start) * 1e3
                    time.sleep(arguments.step_ms / 1e3)
                    if index == 0:
                        first.setdefault(side.name, []).append(took)
                    elif index > 2:
                        later.setdefault(side.name, []).append(took)
                side.close()
        for what, times in (("first step", first), ("step", later)):
            for name, values in times.items():
                yield figure(f"{arguments.waiting} keys waiting, {state}: {what}", name, "ms", values)


def spin(seconds: float) -> None:
    """Hold the interpreter lock, as far as the interpreter lets it."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def measure_steps(makes: Sequence[Make], arguments: argparse.Namespace, root: Path, tier: str) -> Iterator[Figure]:
    """Steps until blocks of a tier are hits."""
    chance = random.Random(arguments.seed)
    each = arguments.waiting // arguments.requests
    requests = {f"r{index}": some_keys(chance, each) for index in range(arguments.requests)}
    n_slots = 2 * arguments.waiting
    for make in makes if tier == "fs" else ():
        place = root / make.__name__
        place.mkdir()
        side = make(n_slots, arguments.block_bytes, tier, str(place))
        for keys in requests.values():
            side.store(keys)
        side.close()
    for kind, forward in (("lock free", time.sleep), ("spinning", spin)):
        steps: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {}
        for turn in range(arguments.trials):
            for make in makes if turn % 2 else reversed(makes):
                side = make(n_slots, arguments.block_bytes, tier, str(root / make.__name__))
                waiting = dict(requests)
                arrived: list[int] = []
                for step in range(1, 10_000):
                    start = time.perf_counter()
                    side.begin_step()
                    answers = {name: side.look_up(name, keys) for name, keys in waiting.items()}
                    for name in [name for name, answer in answers.items() if answer != "wait"]:
                        if answers[name] == "miss":
                            raise AssertionError("the benchmark's blocks should all be on disk")
                        side.load(name, waiting.pop(name))
                        arrived.append(step)
                    side.end_step()
                    times.setdefault(side.name, []).append((time.perf_counter() - start) * 1e3)
                    if not waiting:
                        break
                    forward(arguments.step_ms / 1e3)
                steps.setdefault(side.name, []).append(statistics.mean(arrived))
                side.close()
        for name, values in steps.items():
            yield figure(f"steps to hit, {tier} tier, {kind}", name, "steps", values)
            yield figure(f"  scheduler per step, {kind}", name, "ms", times[name])


def print_table(figures: Sequence[Figure]) -> None:
    """What was measured, for the eye."""
    print(f"{'':48}{'side':6}{'unit':8}{'median':>9}   p10..p90")
    for line in figures:
        print(f"{line.measured:48}{line.side:6}{line.unit:8}{line.median:9.3f}   {line.p10:.3f}..{line.p90:.3f}")


def measure(arguments: argparse.Namespace) -> None:
    """The whole benchmark."""
    version = importlib.import_module("vllm").__version__ if importlib.util.find_spec("vllm") else None
    if version is None:
        print("vLLM is not installed here: ours is measured alone, --help says how to get both", file=sys.stderr)
    makes: list[Make] = [Ours, Peer] if version else [Ours]
    figures: list[Figure] = []
    if "lookups" in arguments.only:
        figures += measure_lookups(makes, arguments)
    if "waiting" in arguments.only:
        figures += measure_waiting(makes, arguments)
    if "steps" in arguments.only:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as root:
            for tier in ("instant", "fs"):
                figures += measure_steps(makes, arguments, Path(root), tier)
    print(f"vLLM {version or 'absent'}, python {sys.version.split()[0]}, steps of {arguments.step_ms} ms")
    print_table(figures)
    if arguments.json:
        options = {name: str(value) for name, value in vars(arguments).items()}
        report = {"vllm": version, "options": options, "figures": list(map(asdict, figures))}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000, help="resident blocks (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="keys per lookup (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=300, help="rounds of lookups (default %(default)s)")
    parser.add_argument("--requests", type=int, default=16, help="waiting requests (default %(default)s)")
    parser.add_argument("--waiting", type=int, default=1024, help="waiting keys, of all (default %(default)s)")
    parser.add_argument("--block-bytes", type=int, default=64 << 10, help="bytes of a block (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="length of a step (default %(default)s)")
    parser.add_argument("--trials", type=int, default=8, help="rounds of waiting, and of disk (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=["lookups", "waiting", "steps"])
    parser.add_argument("--dir", help="where files are put, in a temporary directory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
