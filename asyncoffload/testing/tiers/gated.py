"""A tier whose calls stop where the test says, and go on when the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asyncoffload.aio.waiting import outlive
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.gates import Gate
from asyncoffload.testing.tiers.wrapped import Tier, WrappedTier
from asyncoffload.types import JobResult, LookupResult, RequestContext, TransferJob


class Gates:
    """A gate for each verb; all are open at first."""

    def __init__(self) -> None:
        self.lookup: Gate[Sequence[OffloadKey]] = Gate()
        self.store: Gate[TransferJob] = Gate()
        self.load: Gate[TransferJob] = Gate()

    def open(self) -> None:
        """Open them all."""
        for gate in (self.lookup, self.store, self.load):
            gate.open()


class GatedTier(WrappedTier[Tier]):
    """Passes everything on to the tier inside, through gates.

    A job held at a gate of :attr:`before` is queued: nothing has touched its slots, cancelling it or closing the tier
    ends it at once. A job held at one of :attr:`after` is running: its blocks have moved, but it has not let go of its
    slots; cancelled or not, it ends when the gate opens, and closing waits for that.

    Attributes:
        before: gates before anything happens.
        after: gates at the end of a call.
    """

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner)
        self.before = Gates()
        self.after = Gates()

    async def _lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[LookupResult]:
        await self.before.lookup.passing(keys)
        self._check_open()
        answers = await super()._lookup(keys, ctx)
        await self.after.lookup.passing(keys)
        return answers

    async def _store(self, job: TransferJob) -> JobResult:
        if not await self._let_in(self.before.store, job, is_store=True):
            return self._dropped(job)
        try:
            return await super()._store(job)
        finally:
            await _let_out(self.after.store, job)

    async def _load(self, job: TransferJob) -> JobResult:
        if not await self._let_in(self.before.load, job, is_store=False):
            return self._dropped(job)
        try:
            return await super()._load(job)
        finally:
            await _let_out(self.after.load, job)

    async def _let_in(self, gate: Gate[TransferJob], job: TransferJob, *, is_store: bool) -> bool:
        if gate.holds:
            return await self._queued(gate.passing(job), is_store=is_store)
        await gate.passing(job)
        return True


async def _let_out(gate: Gate[TransferJob], job: TransferJob) -> None:
    if gate.holds:
        await outlive(asyncio.ensure_future(gate.passing(job)))
    else:
        await gate.passing(job)
