"""The ``replay`` command: from its options to its exit status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir

import uvloop
from rich.console import Console

from asyncoffload.cli.generated import generated_traffic
from asyncoffload.cli.own_directory import own_directory
from asyncoffload.cli.replay import Replay, ReplayOptions
from asyncoffload.cli.report import Report
from asyncoffload.cli.results import ALL_WELL, INTERRUPTED, SOMETHING_WRONG, ended, progress, show
from asyncoffload.cli.still_heap import still_heap
from asyncoffload.cli.table import table_of
from asyncoffload.cli.traffic import TOKENS_PER_BLOCK, Request, read_trace
from asyncoffload.config import OffloaderSettings
from asyncoffload.offloader import Offloader

GENERATED_REQUESTS = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCommand:
    """The options of one invocation; ``asyncoffload replay --help`` explains each."""

    trace: Path | None
    requests: int | None
    seed: int
    block_bytes: int
    device_blocks: int
    host_bytes: int
    policy: str
    write_policy: str
    dirty_victims: str
    fs_dir: Path | None
    fs_threads: int | str
    direct_io: str
    concurrency: int
    settle: bool
    speed: float | None
    deadline: float | None
    loop: str
    json: Path | None
    plot: Path | None
    metrics_port: int | None = None
    durability: str = "none"

    def run(self) -> int:
        """Play, print the table, write the files; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        if self.metrics_port is not None:
            import_module("asyncoffload.metrics")  # says what is missing, and reads its files, before a loop runs
        traffic = self._traffic()
        with own_directory(gettempdir(), "replay") if self.fs_dir is None else nullcontext(self.fs_dir) as root:
            replay = Replay(traffic, self._options(Path(root)))
            interrupted = self._play(replay)
            report = replay.report(self._set_up())
            self._show(report, replay)
        if report.wrong_bytes:
            return SOMETHING_WRONG
        return INTERRUPTED if interrupted else ALL_WELL

    def _traffic(self) -> Sequence[Request]:
        if self.trace is None:
            return generated_traffic(self.requests or GENERATED_REQUESTS, seed=self.seed)
        return read_trace(self.trace)[: self.requests]

    def _options(self, root: Path) -> ReplayOptions:
        tier: dict[str, object] = {
            "type": "fs",
            "root_dir": root,
            "io_threads": self.fs_threads,
            "direct_io": self.direct_io,
            "durability": self.durability,
        }
        settings: dict[str, object] = {
            "host_bytes": self.host_bytes,
            "policy": self.policy,
            "write_policy": self.write_policy,
            "dirty_victims": self.dirty_victims,
            "model": "replay",
            "block_size": TOKENS_PER_BLOCK,
            "block_bytes": self.block_bytes,
        }
        if self.settle:
            # Whatever one request stores must find room on its way to disk, or it would be shed and come later.
            tier["max_queued_bytes"] = self.host_bytes
            settings["cascade_blocks"] = max(1, self.host_bytes // self.block_bytes)
        return ReplayOptions(
            settings=OffloaderSettings.parse({**settings, "tiers": [tier]}),
            block_bytes=self.block_bytes,
            device_blocks=self.device_blocks,
            concurrency=self.concurrency,
            settle=self.settle,
            speed=self.speed,
            deadline=self.deadline,
        )

    def _play(self, replay: Replay) -> bool:
        """Run the replay on its loop; whether it was interrupted."""
        factory = uvloop.new_event_loop if self.loop == "uvloop" else asyncio.SelectorEventLoop
        with (
            still_heap(),
            progress(len(replay.requests), "replaying") as advance,
            asyncio.Runner(loop_factory=factory) as runner,
        ):
            try:
                runner.run(replay.run(advance, self._observing))
            except KeyboardInterrupt:
                return True
        return False

    @asynccontextmanager
    async def _observing(self, offloader: Offloader) -> AsyncIterator[None]:
        """Serve the metrics of the run, if that was asked for, and say where."""
        if self.metrics_port is None:
            yield
            return
        from asyncoffload.metrics import serve_metrics

        async with serve_metrics(offloader, self.metrics_port) as server:
            Console(stderr=True).print(f"metrics at {server.url}", highlight=False, soft_wrap=True)
            yield

    def _set_up(self) -> dict[str, str]:
        traffic = f"made up from seed {self.seed}" if self.trace is None else str(self.trace)
        pace = "as fast as possible" if self.speed is None else f"{self.speed:g} times as fast as recorded"
        return {
            "traffic": traffic,
            "pace": pace,
            "in flight": str(self.concurrency) + (", settled in between" if self.settle else ""),
            "policy": self.policy,
            "writes": f"{self.write_policy}, dirty victims: {self.dirty_victims}",
            "loop": self.loop,
            "gc": "frozen after start",
        }

    def _show(self, report: Report, replay: Replay) -> None:
        show(asdict(report), lambda: table_of(report), self.json)
        if self.plot is not None:
            from asyncoffload.cli.plot import save_plot

            save_plot(self.plot, report, replay.served)
