"""Callers that load, store, prefetch and look up drifting conversations, are struck now and then, and compare bytes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from asyncoffload import Offloader, Priority, RequestContext
from asyncoffload.errors import TransferError
from asyncoffload.keys import OffloadKey
from tests.offloader import rig
from tests.offloader.rig import Device, keys_of
from tests.offloader.strikes import STRIKES

T = TypeVar("T")

LENGTH = 8
"""Blocks of the longest request; each caller has as many device blocks."""

SYSTEM = 2
"""Blocks of a request that a quarter of the conversations have in common."""

LIVELY = 60
"""Conversations that callers ask for at a time."""

CALLS_OF_A_GENERATION = 40
"""Calls after which the oldest conversation is over and a new one begins, so that blocks get old."""


class Traffic:
    """Callers over one offloader, each with device blocks of its own, which are poisoned between its calls.

    Args:
        offloader: under test.
        device: its device; ``callers * LENGTH`` blocks.
        callers: how many.
        seed: decides what they do, and when they are struck.

    Attributes:
        counts: how calls ended, by verb and ending, and what loads were stopped by.
    """

    def __init__(self, offloader: Offloader, device: Device, *, callers: int, seed: object) -> None:
        self._offloader = offloader
        self._device = device
        self._callers = callers
        self._seed = seed
        self._calls = 0
        self._at_work = 0
        self._go = asyncio.Event()
        self._go.set()
        self._still = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def run(self, go_on: Callable[[], bool]) -> None:
        """Let the callers call until ``go_on`` says no."""
        async with asyncio.TaskGroup() as group:
            for n in range(self._callers):
                group.create_task(self._caller(n, go_on))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """For the length of a block nobody calls."""
        self._go.clear()
        while self._at_work:
            self._still.clear()
            await self._still.wait()
        rig.content_of.cache_clear()
        yield
        self._go.set()

    async def _caller(self, n: int, go_on: Callable[[], bool]) -> None:
        dice = random.Random(f"{self._seed}/{n}")
        blocks = range(n * LENGTH, (n + 1) * LENGTH)
        self._device.poison(blocks)
        while go_on():
            await self._go.wait()
            self._at_work += 1
            try:
                assert self._device.untouched(blocks), "written to after a call had ended"
                await self._call(dice, blocks)
                self._device.poison(blocks)
            finally:
                self._at_work -= 1
                self._still.set()
            await asyncio.sleep(0)

    async def _call(self, dice: random.Random, blocks: Sequence[int]) -> None:
        self._calls += 1
        if self._calls % CALLS_OF_A_GENERATION == 0:
            rig.content_of.cache_clear()  # or what old blocks contained is remembered for ever
        keys, ctx = self._request(dice), self._context(dice)
        verb = dice.choice(["load", "load", "load", "store", "store", "store", "prefetch", "lookup"])
        calls: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "load": lambda: self._load(dice, keys, blocks[: len(keys)], ctx),
            "store": lambda: self._store(dice, keys, blocks[: len(keys)], ctx),
            "prefetch": lambda: self._prefetch(dice, keys, ctx),
            "lookup": lambda: self._lookup(dice, keys, ctx),
        }
        try:
            await calls[verb]()
        except TransferError:
            self.counts[f"{verb} failed"] += 1

    def _request(self, dice: random.Random) -> list[OffloadKey]:
        conversation = self._calls // CALLS_OF_A_GENERATION + dice.randrange(LIVELY)
        keys = keys_of(f"system {conversation % 4}", SYSTEM) + keys_of(f"user {conversation}", LENGTH - SYSTEM)
        return keys[: dice.randint(1, LENGTH)]

    def _context(self, dice: random.Random) -> RequestContext:
        deadline = time.monotonic() + dice.uniform(-0.001, 0.05) if dice.random() < 0.3 else None
        return RequestContext(deadline=deadline, priority=dice.choice(list(Priority)))

    async def _load(
        self, dice: random.Random, keys: Sequence[OffloadKey], blocks: Sequence[int], ctx: RequestContext
    ) -> None:
        rate = dice.choice([None, None, 10 ** dice.uniform(2, 8)])
        result = await self._struck(dice, "load", self._offloader.load(keys, blocks, ctx, prefill_rate=rate))
        if result is None:
            return
        self.counts["blocks loaded"] += result.blocks
        for tier, count in result.by_tier.items():
            self.counts[f"blocks from {tier}"] += count
        if result.stopped_by is not None:
            self.counts[f"load stopped by {result.stopped_by.value}"] += 1
        assert self._device.holds(keys[: result.blocks], blocks), "wrong bytes"
        assert self._device.untouched(blocks[result.blocks :]), "more was written than was said"

    async def _store(
        self, dice: random.Random, keys: Sequence[OffloadKey], blocks: Sequence[int], ctx: RequestContext
    ) -> None:
        self._device.fill(keys, blocks)
        await self._struck(dice, "store", self._offloader.store(keys, blocks, ctx))

    async def _prefetch(self, dice: random.Random, keys: Sequence[OffloadKey], ctx: RequestContext) -> None:
        await self._struck(dice, "prefetch", self._offloader.prefetch(keys, ctx))

    async def _lookup(self, dice: random.Random, keys: Sequence[OffloadKey], ctx: RequestContext) -> None:
        await self._struck(dice, "lookup", self._offloader.lookup(keys, ctx))

    async def _struck(self, dice: random.Random, verb: str, call: Coroutine[Any, Any, T]) -> T | None:
        """Half of the calls are left alone; the others are cancelled after some turns, unless they have ended."""
        if dice.random() < 0.5:
            result: T | None = await call
        else:
            moment = dice.randrange(dice.choice([4, 12, 60, 400]))
            result = await dice.choice(STRIKES)(moment, call)
        self.counts[f"{verb} {'cancelled' if result is None else 'done'}"] += 1
        return result
