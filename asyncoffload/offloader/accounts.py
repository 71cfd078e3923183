"""Keeps count of what an offloader is asked for, and of what it copies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from asyncoffload.aio.durations import Durations
from asyncoffload.offloader.results import LoadResult, StoreResult
from asyncoffload.offloader.stats import BlockCounts, CopyStats, VerbStats
from asyncoffload.types import Status, TransferResult


class VerbAccount:
    """The calls of one verb. The event loop counts, any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._durations = Durations()
        self._in_flight = self._ok = self._cancelled = self._failed = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call, for as long as it takes."""
        began_at = self._clock()
        self._in_flight += 1
        try:
            yield
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        except BaseException:
            self._failed += 1
            raise
        else:
            self._ok += 1
        finally:
            self._in_flight -= 1
            self._durations.add(self._clock() - began_at)

    def snapshot(self) -> VerbStats:
        """What was counted so far."""
        return VerbStats(self._durations.snapshot(), self._in_flight, self._ok, self._cancelled, self._failed)


class BlockAccount:
    """The blocks that calls named. The event loop counts, any thread may ask.

    Args:
        tiers: where blocks may come from.
    """

    def __init__(self, tiers: Iterable[str]) -> None:
        self._queried = self._found = self._computed = 0
        self._loaded = dict.fromkeys(tiers, 0)
        self._missed = dict.fromkeys(Status, 0)
        del self._missed[Status.DONE]  # ends no prefix
        self._stored = self._present = self._shed = 0

    def looked_up(self, queried: int, found: int) -> None:
        """A lookup found so many of so many blocks."""
        self._queried += queried
        self._found += found

    def loaded(self, asked: int, result: LoadResult) -> None:
        """A load that was asked for so many blocks ended."""
        for tier, blocks in result.by_tier.items():
            self._loaded[tier] += blocks
        if result.stopped_by is not None:
            self._missed[result.stopped_by] += asked - result.blocks
        else:
            self._computed += asked - result.blocks

    def stored(self, result: StoreResult) -> None:
        """A store ended."""
        self._stored += result.stored
        self._present += result.present
        self._shed += result.shed

    def snapshot(self) -> BlockCounts:
        """What was counted so far."""
        return BlockCounts(
            queried=self._queried,
            found=self._found,
            loaded=self._loaded.copy(),
            missed=self._missed.copy(),
            computed=self._computed,
            stored=self._stored,
            present=self._present,
            shed=self._shed,
        )


class CopyAccount:
    """The copies of one direction. The event loop counts, any thread may ask."""

    def __init__(self) -> None:
        self._durations = Durations()
        self._in_flight = self._failed = self._nbytes = 0

    def began(self) -> None:
        """A copy was launched."""
        self._in_flight += 1

    def ended(self, result: TransferResult) -> None:
        """A copy ended."""
        self._in_flight -= 1
        self._durations.add(result.transfer_time)
        if result.success:
            self._nbytes += result.transfer_size
        else:
            self._failed += 1

    def snapshot(self) -> CopyStats:
        """What was counted so far."""
        return CopyStats(self._durations.snapshot(), self._in_flight, self._failed, self._nbytes)


class Accounts:
    """All accounts of an offloader.

    Args:
        tiers: where blocks may come from.

    Attributes:
        verbs: the calls of ``lookup``, ``load``, ``prefetch`` and ``store``.
        blocks: what these named.
        copies: by direction, ``"load"`` to the device and ``"store"`` from it.
    """

    def __init__(self, tiers: Iterable[str]) -> None:
        self.verbs = {verb: VerbAccount() for verb in ("lookup", "load", "prefetch", "store")}
        self.blocks = BlockAccount(tiers)
        self.copies = {direction: CopyAccount() for direction in ("load", "store")}
