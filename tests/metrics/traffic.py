"""Calls of all kinds on one stack, some of which are cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from asyncoffload import Offloader, OffloadError, OffloadKey
from asyncoffload.testing.tiers.faulty import Verb
from tests.offloader.rig import turns

VERBS: list[Verb] = ["load", "store", "lookup"]


async def traffic(offloader: Offloader, keys: Sequence[OffloadKey], chance: random.Random, calls: int) -> None:
    """Calls of all kinds, some of which are cancelled; each worker has device blocks of its own."""
    for _ in range(calls):
        first = chance.randrange(len(keys) - 8)
        some, blocks = keys[first : first + 8], range(8)
        move = chance.choice([None, offloader.load, offloader.store])
        task: asyncio.Future[object] = asyncio.ensure_future(move(some, blocks) if move else offloader.lookup(some))
        await turns(chance.randrange(4))
        if not chance.randrange(4):
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, OffloadError)
