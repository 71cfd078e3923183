"""The tier under test, called from plain code; its event loop runs only during a call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from asyncoffload.cli.fs_bench.memory import BenchMemory
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.space import DirectIO
from asyncoffload.types import JobResult, KVGroup, KVLayout, TransferJob

T = TypeVar("T")
Verb = Callable[[TransferJob], Awaitable[JobResult]]

JOB_BLOCKS = 16
"""Blocks of one job."""


def bench_layout(block_bytes: int) -> KVLayout:
    """The layout of the benchmark's blocks."""
    return KVLayout("bench", "uint8", 16, (KVGroup((block_bytes,)),))


class TierSide:
    """A file system tier over the slots of a :class:`BenchMemory`; a context manager.

    Args:
        memory: the slots.
        root: its root.
        io_threads: threads that read, and as many that write.
        direct_io: as the tier's own setting.
    """

    def __init__(self, memory: BenchMemory, root: str, io_threads: int, direct_io: DirectIO) -> None:
        self._memory = memory
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._tier = FileSystemTierManager(
            bench_layout(memory.slot_bytes),
            memory.view,
            "fs",
            root,
            io_threads,
            io_threads,
            max_queued_bytes=None,
            direct_io=direct_io,
        )

    def __enter__(self) -> Self:
        try:
            self._run(self._tier.start())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def uses_direct_io(self) -> bool:
        """Whether the tier passes by the page cache."""
        return bool(self._tier.stats()["direct_io"])

    def store(self, keys: Sequence[OffloadKey]) -> float:
        """Seconds to store the slots under these keys, in jobs that are submitted at once."""
        return self._run(self._all(self._tier.store, keys))

    def load(self, keys: Sequence[OffloadKey]) -> float:
        """Seconds to load the keys into the slots, in jobs that are submitted at once."""
        return self._run(self._all(self._tier.load, keys))

    def store_singly(self, keys: Sequence[OffloadKey]) -> list[float]:
        """Seconds of each of as many jobs of one block, one after the other."""
        return self._run(self._singly(self._tier.store, keys))

    def load_singly(self, keys: Sequence[OffloadKey]) -> list[float]:
        """Seconds of each of as many jobs of one block, one after the other."""
        return self._run(self._singly(self._tier.load, keys))

    async def _all(self, verb: Verb, keys: Sequence[OffloadKey]) -> float:
        jobs = [
            TransferJob(keys[begin : begin + JOB_BLOCKS], range(begin, min(begin + JOB_BLOCKS, len(keys))))
            for begin in range(0, len(keys), JOB_BLOCKS)
        ]
        began = time.perf_counter()
        results = await asyncio.gather(*map(verb, jobs))
        seconds = time.perf_counter() - began
        for result in results:
            result.raise_for_failures()
        return seconds

    async def _singly(self, verb: Verb, keys: Sequence[OffloadKey]) -> list[float]:
        seconds = []
        for slot, key in enumerate(keys):
            began = time.perf_counter()
            result = await verb(TransferJob([key], [slot]))
            seconds.append(time.perf_counter() - began)
            result.raise_for_failures()
        return seconds

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def _close(self) -> None:
        try:
            self._run(self._tier.aclose(drain=False))
        finally:
            self._runner.close()
