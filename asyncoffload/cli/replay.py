"""One run of traffic through the whole stack, every byte real and every loaded byte verified.

The device is memory of the processor: a list of layer tensors, whose blocks are lent to requests. A request looks up
its prefix, loads what is there into its device blocks, verifies it, "computes" the rest and stores it. Requests are
coroutines, and many of them are in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import torch

from asyncoffload.aio.waiting import outlive
from asyncoffload.cli.blockbytes import BlockBytes
from asyncoffload.cli.device_pool import DevicePool
from asyncoffload.cli.loop_lag import LoopLag
from asyncoffload.cli.report import Account, Report, Served, TierAccount, report_of
from asyncoffload.cli.traffic import Request
from asyncoffload.config import PRIMARY_NAME, OffloaderSettings
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.offloader import Offloader, OffloaderStats
from asyncoffload.types import RequestContext, Status

T = TypeVar("T")

LAYERS = 4
MODEL_THREADS = 2


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to play the traffic.

    Attributes:
        settings: the offloader's settings.
        block_bytes: bytes of one block over all layers.
        device_blocks: blocks of the device; a request holds all of its own while it is served.
        concurrency: requests in flight.
        settle: every cascade ends before the next request starts.
        speed: seconds of the trace per second; None: as fast as possible.
        deadline: seconds that a request waits for its blocks; None: no limit.
    """

    settings: OffloaderSettings
    block_bytes: int
    device_blocks: int
    concurrency: int = 16
    settle: bool = False
    speed: float | None = None
    deadline: float | None = None


class Replay:
    """A run, and everything that was seen of it so far: an interrupted one can be reported all the same.

    Attributes:
        served: the requests that have ended, in order of their end.
        lag: samples of the event loop's lag.
        stats: the offloader's own account at the end; None before it.
        seconds: wall time of the run.
        cpu_seconds: processor time of the whole process in that time.
    """

    def __init__(self, requests: Sequence[Request], options: ReplayOptions) -> None:
        page_bytes, rest = divmod(options.block_bytes, LAYERS)
        if rest or page_bytes % 8 or page_bytes <= 0:
            raise InvalidArgument(f"a block of {options.block_bytes} bytes is not a positive multiple of {LAYERS * 8}")
        longest = max(len(request.blocks) for request in requests)
        if longest > options.device_blocks:
            raise InvalidArgument(
                f"the longest request has {longest} blocks, the device {options.device_blocks}: give it more blocks"
            )
        self.requests = requests
        self.options = options
        self.served: list[Served] = []
        self.lag = LoopLag()
        self.stats: OffloaderStats | None = None
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._keys = {block: _key(block) for block in {block for request in requests for block in request.blocks}}
        self._started = 0.0
        self._pool = DevicePool(options.device_blocks)
        self._layers = [torch.zeros(options.device_blocks, page_bytes, dtype=torch.uint8) for _ in range(LAYERS)]
        self._contents = BlockBytes(self._layers)
        self._model_threads = ThreadPoolExecutor(MODEL_THREADS, thread_name_prefix="replay-model")

    async def run(
        self,
        progress: Callable[[], None] = lambda: None,
        observing: Callable[[Offloader], AbstractAsyncContextManager[object]] = nullcontext,
    ) -> None:
        """Play all requests.

        Args:
            progress: called after each of them.
            observing: what it makes of the offloader is entered for the length of the run.

        Cancellation: requests in flight are cancelled, nothing that is queued is waited for, and what was seen so far
        is kept.
        """
        self._started, cpu = time.perf_counter(), time.process_time()
        async with Offloader(self.options.settings, kv_caches=self._layers) as offloader, observing(offloader):
            try:
                async with self.lag.sampling(), asyncio.TaskGroup() as group:
                    in_flight = asyncio.Semaphore(self.options.concurrency)
                    for number, request in enumerate(self.requests):
                        await self._arrival(request)
                        await in_flight.acquire()
                        if self.options.settle:
                            await offloader.settle()
                        group.create_task(self._serve_and_record(offloader, number, request, in_flight, progress))
                await offloader.settle()
            except asyncio.CancelledError:
                await offloader.aclose(drain=False)
                raise
            finally:
                self.seconds, self.cpu_seconds = time.perf_counter() - self._started, time.process_time() - cpu
                self.stats = offloader.stats()
                self._model_threads.shutdown(wait=False)

    def report(self, set_up: Mapping[str, str]) -> Report:
        """The figures of the run so far; ``set_up`` says in words how it was set up."""
        return report_of(
            self.served,
            requests=len(self.requests),
            block_bytes=self.options.block_bytes,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            lag=self.lag.samples,
            account=Account() if self.stats is None else _account(self.stats),
            primary=PRIMARY_NAME,
            set_up=set_up,
        )

    async def _arrival(self, request: Request) -> None:
        if self.options.speed is not None:
            due = self._started + request.arrival / self.options.speed
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _serve_and_record(
        self,
        offloader: Offloader,
        number: int,
        request: Request,
        in_flight: asyncio.Semaphore,
        progress: Callable[[], None],
    ) -> None:
        try:
            async with self._pool.lent(len(request.blocks)) as blocks:
                self.served.append(await self._serve(offloader, number, request, blocks))
            progress()
        finally:
            in_flight.release()

    async def _serve(self, offloader: Offloader, number: int, request: Request, blocks: Sequence[int]) -> Served:
        if not request.blocks:
            return Served(finished=self._now(), blocks=0)
        keys = [self._keys[block] for block in request.blocks]
        deadline = None if self.options.deadline is None else time.monotonic() + self.options.deadline
        ctx = RequestContext(request_id=f"request {number}", deadline=deadline)
        found = await offloader.lookup(keys, ctx)
        await self._in_model(lambda: self._contents.wipe(blocks[:found]))
        asked = time.perf_counter()
        loaded = await offloader.load(keys[:found], blocks[:found], ctx)
        load_seconds = time.perf_counter() - asked if found else 0.0
        wrong = await self._in_model(lambda: self._contents.count_wrong(keys[: loaded.blocks], blocks[: loaded.blocks]))
        await self._in_model(lambda: self._contents.write(keys[loaded.blocks :], blocks[loaded.blocks :]))
        stored = await offloader.store(keys, blocks, RequestContext(request_id=ctx.request_id))
        return Served(
            finished=self._now(),
            blocks=len(keys),
            hits=dict(loaded.by_tier),
            load_seconds=load_seconds,
            wrong_bytes=wrong,
            stored=stored.stored,
            shed=stored.shed,
            stopped_by=loaded.stopped_by,
        )

    async def _in_model(self, work: Callable[[], T]) -> T:
        """Do a model's work in one of its threads; cancelled, it still ends before its blocks are given back."""
        return await outlive(asyncio.get_running_loop().run_in_executor(self._model_threads, work))

    def _now(self) -> float:
        return time.perf_counter() - self._started


def _account(stats: OffloaderStats) -> Account:
    """What matters here of the offloader's statistics."""
    tiers = {
        name: TierAccount(
            promoted=int(counts["promoted"]),
            cascaded=int(counts["stored"]),
            shed=int(counts["shed"]),
            corrupt=int(counts.get(f"refused_{Status.CORRUPT.value}", 0)),
            failed=int(counts["failed"] + counts.get(f"refused_{Status.FAILED.value}", 0)),
        )
        for name, counts in stats.tiers.items()
    }
    return Account(evicted=stats.primary.evicted, lost=stats.primary.lost, tiers=tiers)


def _key(block: int) -> OffloadKey:
    """The key of a block of the trace. Its id is hashed, since keys of real engines are spread evenly."""
    return make_key(blake2b(block.to_bytes(8, "big"), digest_size=16).digest())
