"""The manager of a primary tier with secondary tiers behind it: looking up and loading over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from asyncoffload.core.promotions import comes_before
from asyncoffload.core.recompute import Estimate, weigh
from asyncoffload.core.tickets import PRIMARY, Mode, Ticket
from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.managers.call_counts import CallStats
from asyncoffload.managers.conducting import STRETCH_BLOCKS, ConductingManager
from asyncoffload.managers.tier_names import allowed_tiers, counts_by_name
from asyncoffload.managers.tiered_lease import TieredLoadLease
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    RequestContext,
    Status,
)


class TieringOffloadingManager(ConductingManager):
    """Blocks in the slots of host memory, written to slower tiers and brought back from them.

    ``lookup`` is advice over all tiers. ``loading`` and ``prepare_load`` are the promise: they promote what is not in
    the primary, share promotions that are under way, and hold each block as it arrives. A block that one tier cannot
    give, whatever the reason, is asked of the next one; a tier that fails costs misses, never errors.

    Cancellation and deadlines: whoever waits leaves at once and holds nothing (a lease keeps what it has). The work
    itself belongs to the manager: it goes on for the others who wait for it, and what nobody wants any more is
    dropped by the tier between two blocks.

    Args:
        region: the memory of the slots; it outlives the manager.
        tiers: the secondary tiers, asked in this order. They outlive the manager and are not closed by it.
        policy: who is evicted from the primary; least recently used by default.
        store_threshold: a block is stored from this offer on.
        block_size: tokens per block, for events.
        promotion_bytes: bound on the bytes on their way into the primary.
        cascade_blocks: bound on the blocks on their way into each tier; what exceeds it is shed and offered again
            later. By default a quarter of the primary.
        write_policy: whether blocks are written to the tiers as soon as they are stored, or only when they are about
            to be evicted.
        dirty_victims: what happens where only blocks that no tier has could make room: they are dropped, and counted
            as lost; or what needs room waits for the tiers, and is refused where none of them takes any.
        group_bytes: bytes of a block of each group, to count what is moved; by default those of a slot.
        journal_blocks: how many blocks' lives are remembered for :meth:`explain`; 0 for none.
        clock: seconds; the clock of the deadlines.
        now: seconds since the epoch; the clock of the journal.

    Raises:
        ConfigError: two tiers have the same name.
    """

    # ---- reading over tiers

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """The length of the prefix that the primary or an allowed tier holds; it moves and pins nothing.

        At the deadline it answers with what it knows by then.
        """
        tiers = allowed_tiers(self._names, ctx)
        ready = await super().lookup(keys, ctx)
        if ready == len(keys) or not tiers:
            return ready
        async with self._ticket(checked_keys(keys[ready:]), Mode.LOOK, ctx) as ticket:
            await self._until_done(ticket)
            return ready + ticket.pos

    async def weigh(self, keys: Sequence[OffloadKey], ctx: RequestContext, seconds_per_block: float) -> Estimate:
        """How long a prefix is worth loading by a request that could compute its blocks instead; moves nothing.

        What others wait for, as urgently, counts as served before; blocks that both want count once.

        Cancellation: leaves at once.

        Raises:
            InvalidArgument: keys are malformed.
            ClosedError: the manager was closed.
        """
        self._check_open()
        keys = checked_keys(keys)
        ready = self._primary.lookup(keys)
        sources = [PRIMARY] * ready
        coming: set[OffloadKey] = set()
        if ready < len(keys) and allowed_tiers(self._names, ctx):
            async with self._ticket(keys[ready:], Mode.LOOK, ctx) as ticket:
                await self._until_done(ticket)
                fetches = ticket.fetches[: ticket.pos]
                sources += [PRIMARY if fetch is None else fetch.tier for fetch in fetches]
                coming = {fetch.key for fetch in fetches if fetch is not None and comes_before(fetch, ctx.priority)}
        nbytes = [0 if key in coming else self._runner.bytes_of([key]) for key in keys[: len(sources)]]
        routes = self._runner.routes(self._planner.ahead_of(ctx.priority))
        return weigh(sources, nbytes, routes, seconds_per_block)

    async def prepare_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> CPULoadStoreSpec:
        self._check_open()
        keys = checked_keys(keys)
        if self._primary.lookup(keys) == len(keys):
            return await super().prepare_load(keys, ctx)
        async with self._ticket(keys, Mode.HOLD, ctx) as ticket:
            await self._until_done(ticket)
            return self._plan(self._primary.prepare_load, keys)

    @asynccontextmanager
    async def loading(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, streaming: bool = False
    ) -> AsyncIterator[TieredLoadLease]:
        keys = checked_keys(keys)
        async with self._ticket(keys, Mode.HOLD, ctx) as ticket:
            if not streaming:
                await self._until_done(ticket)
            lease = TieredLoadLease(keys, ticket, self._names, lambda: self._until_moved(ticket))
            try:
                yield lease
            finally:
                lease.end()

    def tier_counts(self) -> dict[str, dict[str, int]]:
        """Per tier: blocks promoted; cascades ``in_flight``, ``stored``, ``shed`` and ``failed``; and as
        ``refused_missing``, ``refused_corrupt`` and so on how often it could not give a block that was asked for.
        """
        return counts_by_name(self._names, self._planner)

    def call_stats(self) -> dict[str, dict[str, CallStats]]:
        """Per tier and method, ``lookup``, ``load`` and ``store``, what its calls have come to. Any thread."""
        return {
            name: {kind.value: counts.snapshot() for kind, counts in calls.items()}
            for name, calls in zip(self._names, self._runner.calls, strict=True)
        }

    def shed_counts(self) -> dict[str, dict[str, int]]:
        """Per tier, how many blocks of those that were offered to it were put off, by what they ran into:
        the bound ``cascade_blocks``, the ``tier`` itself, or that offers were taken back (``dropped``). Any thread.
        """
        return {name: self._planner.shed_counts(tier) for tier, name in enumerate(self._names)}

    def __repr__(self) -> str:
        state = "broken" if self._failure is not None else "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}, tiers {', '.join(self._names) or 'none'}: {self._planner!r}>"

    # ---- tickets

    @asynccontextmanager
    async def _ticket(self, keys: Sequence[OffloadKey], mode: Mode, ctx: RequestContext) -> AsyncIterator[Ticket]:
        """A ticket that is closed whatever happens; callers open theirs piece by piece, so that the loop breathes."""
        self._check_open()
        tiers = allowed_tiers(self._names, ctx)
        ticket = self._plan(
            self._planner.open, (), mode, ctx.priority, tiers=tiers, deadline=ctx.deadline, depth=ctx.depth
        )
        try:
            for start in range(0, len(keys), STRETCH_BLOCKS):
                piece = keys[start : start + STRETCH_BLOCKS]
                async with self._turn:
                    if self._wished >= STRETCH_BLOCKS:
                        await asyncio.sleep(0)  # until the pump has run
                    self._plan(self._planner.extend, ticket, piece)
                    self._wished += len(piece)
            yield ticket
        except BaseException:
            with suppress(InternalError):  # the exception that ended the block is the one to see
                self._plan(self._planner.close, ticket)
            raise
        else:
            self._plan(self._planner.close, ticket)
        finally:
            self._announce(ticket)

    async def _until_done(self, ticket: Ticket) -> None:
        while not ticket.done:
            await self._until_moved(ticket)

    async def _until_moved(self, ticket: Ticket) -> None:
        """Wait until the ticket's prefix has moved or ended; at its deadline it ends."""
        patience = None if ticket.deadline is None else ticket.deadline - self._clock()
        moved = self._moves.setdefault(ticket, asyncio.Event())
        try:
            async with asyncio.timeout(patience):
                await moved.wait()
        except TimeoutError:
            self._plan(self._planner.expire, ticket, Status.TIMED_OUT)
        self._check_intact()
