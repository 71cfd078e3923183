"""What all laws share: a tier with its slots, and words for what it answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from asyncoffload.testing.slots import Slots
from asyncoffload.testing.tier_hooks import TierHooks
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import JobResult, LookupResult, Status, TransferJob

N_SLOTS = 64
MANY_TURNS = 2_000
HIT, MISS = LookupResult.HIT, LookupResult.MISS

WRONG_BYTES = "a slot does not hold the bytes of its key, or the bytes behind them were written to"
TOUCHED = "slots were written to by somebody whom they did not belong to, or not any more"

Verb = Callable[[TransferJob], Awaitable[JobResult]]


class Laws(TierHooks):
    """Some of the laws; :class:`asyncoffload.testing.TierLaws` has all of them."""

    @asynccontextmanager
    async def serving(self, place: Path) -> AsyncIterator[tuple[SecondaryTierManager, Slots]]:
        """A tier with its slots."""
        slots = Slots(self.layout(), N_SLOTS)
        async with self.make_tier(slots.layout, slots.view, place) as tier:
            yield tier, slots


def statuses(result: JobResult) -> list[Status]:
    """The status of each key of a result."""
    return [outcome.status for outcome in result.outcomes]


def checkpoints() -> Iterator[int]:
    """How many turns of the loop a job gets before it is cancelled: each of the first ones, later ones sparsely."""
    yield from range(16)
    turns = 16
    while turns < MANY_TURNS:
        yield turns
        turns += turns // 4


async def turns(count: int) -> None:
    """Give everybody else so many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_after(count: int, verb: Verb, job: TransferJob) -> bool:
    """Run a job and cancel it after so many turns of the loop; False when it had ended before."""
    task = asyncio.ensure_future(verb(job))
    await turns(count)
    in_time = not task.done()
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return in_time
