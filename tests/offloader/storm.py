"""Callers that load and store shared conversations and are struck at random moments; every byte is looked at."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from asyncoffload import Offloader, RequestContext
from asyncoffload.errors import TransferError
from asyncoffload.keys import OffloadKey
from tests.offloader.rig import Device, keys_of
from tests.offloader.strikes import STRIKES


class Storm:
    """Callers over one offloader, each with device blocks of its own.

    After every call its device blocks are poisoned, unless a result says what they hold: a late write shows as blocks
    that are no longer poisoned, a late read as poison that a later load brings back.

    Args:
        offloader: under test.
        device: its device; shared out among the callers.
        callers: how many.
        seed: decides what they ask for, and when they are struck.
        length: blocks of the longest request.

    Attributes:
        counts: how calls ended.
    """

    def __init__(self, offloader: Offloader, device: Device, *, callers: int, seed: int, length: int = 8) -> None:
        self._offloader = offloader
        self._device = device
        self._callers = callers
        self._seed = seed
        self._length = length
        half = length // 2
        self._prompts = [keys_of(f"system {n % 4}", half) + keys_of(f"user {n}", half) for n in range(24)]
        self.counts: Counter[str] = Counter()

    async def rage(self, go_on: Callable[[], bool], *, deadlines: bool = False) -> None:
        """Let the callers call until ``go_on`` says no."""
        async with asyncio.TaskGroup() as group:
            for n in range(self._callers):
                group.create_task(self._caller(n, go_on, deadlines))

    async def _caller(self, n: int, go_on: Callable[[], bool], deadlines: bool) -> None:
        dice = random.Random(f"{self._seed}/{n}")
        blocks = range(n * self._length, (n + 1) * self._length)
        self._device.poison(blocks)
        while go_on():
            assert self._device.untouched(blocks), "written to after a call had ended"
            keys = dice.choice(self._prompts)[: dice.randint(1, self._length)]
            deadline = time.monotonic() + dice.uniform(-0.001, 0.02) if deadlines and dice.random() < 0.3 else None
            try:
                await self._call(dice, keys, blocks[: len(keys)], RequestContext(deadline=deadline))
            except TransferError:
                self.counts["failed"] += 1
            self._device.poison(blocks)

    async def _call(
        self, dice: random.Random, keys: Sequence[OffloadKey], blocks: Sequence[int], ctx: RequestContext
    ) -> None:
        strike, moment = dice.choice(STRIKES), dice.randrange(dice.choice([4, 12, 60]))
        if dice.random() < 0.5:
            loaded = await strike(moment, self._offloader.load(keys, blocks, ctx))
            if loaded is not None:
                self.counts["loaded"] += loaded.blocks
                assert self._device.holds(keys[: loaded.blocks], blocks), "wrong bytes"
                assert self._device.untouched(blocks[loaded.blocks :]), "more was written than was said"
            cancelled = loaded is None
        else:
            self._device.fill(keys, blocks)
            cancelled = await strike(moment, self._offloader.store(keys, blocks, ctx)) is None
        self.counts["cancelled" if cancelled else "done"] += 1
