"""The manager of a primary tier with secondary tiers behind it: the coroutine conductor of the planner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.journal import DEFAULT_JOURNAL_BLOCKS
from asyncoffload.core.ops import Hurry, Op
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.recompute import Estimate, weigh
from asyncoffload.core.tickets import PRIMARY, Mode, Ticket
from asyncoffload.errors import InternalError, TierUnavailable
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.managers.call_counts import CallStats
from asyncoffload.managers.cpu import CPUOffloadingManager
from asyncoffload.managers.planning import DEFAULT_PROMOTION_BYTES, planner_for
from asyncoffload.managers.runner import OpRunner
from asyncoffload.managers.tier_names import allowed_tiers, counts_by_name, names_of
from asyncoffload.managers.tiered_lease import TieredLoadLease
from asyncoffload.managers.touching import Touches
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    DirtyVictims,
    OffloadingEvent,
    RequestContext,
    Status,
    WritePolicy,
)

logger = logging.getLogger(__name__)

STRETCH_BLOCKS = 64
"""Blocks that are opened, and started, in one stretch of the loop: planning a block takes a few microseconds, and a
loop should not be kept for half a millisecond."""
LONG_CLOSE = 10.0
"""Seconds after which closing says what it is waiting for."""


class TieringOffloadingManager(CPUOffloadingManager):
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

    def __init__(
        self,
        region: HostRegion,
        tiers: Sequence[SecondaryTierManager] = (),
        *,
        policy: EvictionPolicy | None = None,
        store_threshold: int = 1,
        block_size: int = 0,
        promotion_bytes: int = DEFAULT_PROMOTION_BYTES,
        cascade_blocks: int | None = None,
        write_policy: WritePolicy = "write_through",
        dirty_victims: DirtyVictims = "drop",
        group_bytes: Sequence[int] = (),
        journal_blocks: int = DEFAULT_JOURNAL_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            region.n_slots,
            policy=policy,
            memory=region,
            store_threshold=store_threshold,
            block_size=block_size,
            n_tiers=len(tiers),
            dirty_victims=dirty_victims,
            journal_blocks=journal_blocks,
            clock=clock,
            now=now,
        )
        self._tiers = tuple(tiers)
        self._names = names_of(tiers)
        self._explainer.tiers, self._explainer.names = self._tiers, self._names
        self._runner = OpRunner(tiers, region, group_bytes=group_bytes, clock=clock)
        self._planner = planner_for(
            self._primary,
            tiers,
            self._runner,
            region,
            promotion_bytes=promotion_bytes,
            cascade_blocks=cascade_blocks,
            write_policy=write_policy,
        )
        self._touches = Touches(tiers, clock)
        self._running: dict[Op, asyncio.Task[None]] = {}
        self._moves: dict[Ticket, asyncio.Event] = {}
        self._settled = asyncio.Event()
        self._pump_armed = False
        self._wished = 0  # keys of tickets since the pump last ran
        self._turn = asyncio.Lock()  # whose keys are next

    # ---- reading over tiers

    async def touch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
        await super().touch(keys, ctx)
        self._touches.add(keys)

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

        Cancellation: leaves at once.

        Raises:
            InvalidArgument: keys are malformed.
            ClosedError: the manager was closed.
        """
        self._check_open()
        keys = checked_keys(keys)
        ready = self._primary.lookup(keys)
        sources = [PRIMARY] * ready
        if ready < len(keys) and allowed_tiers(self._names, ctx):
            async with self._ticket(keys[ready:], Mode.LOOK, ctx) as ticket:
                await self._until_done(ticket)
                sources += [PRIMARY if fetch is None else fetch.tier for fetch in ticket.fetches[: ticket.pos]]
        nbytes = [self._runner.bytes_of([key]) for key in keys[: len(sources)]]
        return weigh(sources, nbytes, self._runner.routes(), seconds_per_block)

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

    # ---- the whole

    async def settle(self) -> None:
        """Wait until every cascade that was offered has ended. Cancelled, it leaves at once, and they go on."""
        self._check_open()
        await self._until_settled()

    async def flush(self) -> None:
        """Copy every block of the primary to the tiers that have no copy of it, and wait until that has ended.

        Blocks that are being written count, once they are ready, only for the next time. What a tier does not take
        stays as it is, and is counted. Cancelled, it leaves at once, and the copying goes on.

        Raises:
            ClosedError: the manager was closed.
        """
        self._check_open()
        self._plan(self._planner.flush)
        await self._until_settled()

    async def take_events(self) -> Sequence[OffloadingEvent]:
        self._plan(self._take_tier_events, range(len(self._tiers)))
        return await super().take_events()

    async def reset(self) -> None:
        self._check_open()
        self._plan(self._planner.reset)

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work and end all waiting; cascades finish within ``drain_timeout``, promotions are dropped.

        Who waits in ``lookup`` or ``loading`` goes on with what it has, who waits for room gets ``ClosedError``.

        Raises:
            TierUnavailable: a tier still works on slots ``timeout`` seconds later; their memory must stay. Closing
                again waits again.

        Cancellation: cascades are dropped as well, what runs is still awaited, then the cancellation is raised.
        """
        self._own_loop()
        self._closed = True
        self._room.fail(self._closed_error)
        with suppress(InternalError):  # a broken plan has told everybody already; what runs must still be awaited
            self._plan(self._planner.shut)
        try:
            await outlive(asyncio.ensure_future(self._close(drain, drain_timeout, timeout)), self._drop_cascades)
        finally:
            self._hub.close()

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        warning = asyncio.get_running_loop().call_later(
            LONG_CLOSE, lambda: logger.warning("closing waits for %s", self._what_runs())
        )
        try:
            if drain:
                with suppress(TimeoutError, InternalError):
                    async with asyncio.timeout(drain_timeout):
                        await self._until_settled()
            self._drop_cascades()
            await self._touches.aclose()
            if self._running:
                await asyncio.wait(self._running.values(), timeout=timeout)
        finally:
            warning.cancel()
        if self._running:
            raise TierUnavailable(
                f"after {timeout} s these still work on slots, leave their memory alone and close again: "
                + self._what_runs()
            )

    def _drop_cascades(self) -> None:
        with suppress(InternalError):
            self._plan(self._planner.shut, drain=False)

    def _what_runs(self) -> str:
        return ", ".join(f"{self._names[op.tier]} {op!r}" for op in self._running)

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

    async def _until_settled(self) -> None:
        if not self._plan(lambda: self._planner.settled):
            self._settled.clear()
            await self._settled.wait()
            self._check_intact()

    def _announce(self, ticket: Ticket) -> None:
        moved = self._moves.pop(ticket, None)
        if moved is not None:
            moved.set()

    def _check_intact(self) -> None:
        if self._failure is not None:
            raise self._internal_error() from self._failure

    # ---- ops

    def _store_began(self, keys: Sequence[OffloadKey]) -> None:
        self._planner.store_began(keys)

    def _store_ended(self, keys: Sequence[OffloadKey]) -> None:
        self._planner.store_ended(keys)

    def _make_room(self, wanted: Sequence[OffloadKey], keep: Sequence[OffloadKey], *, insist: bool) -> bool:
        looked = self._planner.make_room(wanted, keep, insist=insist)
        if looked:
            self._arm_pump()
        return looked

    def _may_make_room(self, wanted: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> bool:
        return self._planner.may_make_room(wanted, keep)

    def _after_change(self) -> None:
        super()._after_change()
        self._arm_pump()

    def _arm_pump(self) -> None:
        if not self._pump_armed and self._loop is not None:
            self._pump_armed = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start what the planner wants started, once per loop iteration, so that who asks together shares probes.

        It starts a bounded number of blocks and comes again as long as there is something to do.
        """
        self._pump_armed = False
        self._wished = 0
        if self._failure is not None:
            return
        try:
            dirty = self._primary.table.n_dirty
            started = self._planner.take(STRETCH_BLOCKS)
            woken = self._planner.take_woken()
            for item in started:
                if isinstance(item, Hurry):
                    self._runner.hurry(item)
                else:
                    self._start(item)
            for ticket in woken:
                self._announce(ticket)
            if self._planner.settled:
                self._settled.set()
            if started or woken:
                self._after_change()
            elif self._primary.table.n_dirty < dirty:  # what a tier was found to have has become a victim
                self._call_up()
        except Exception as error:  # a broken plan must reach everybody who waits for it
            self._fail(error)

    def _start(self, op: Op) -> None:
        task = asyncio.ensure_future(self._conduct(op))
        if not task.done():  # an eager task may be
            self._running[op] = task

    async def _conduct(self, op: Op) -> None:
        """Run one op in a task of the manager, never in a caller's."""
        try:
            await self._runner.run(op, self._op_settled)
        except Exception as error:  # who waits for the op must hear of it
            self._fail(error)
        finally:
            self._running.pop(op, None)

    def _op_settled(self, op: Op, statuses: Sequence[Status], *, abandoned: bool) -> None:
        with suppress(InternalError):  # whoever waits has been told
            self._plan(self._settle, op, statuses, abandoned)

    def _settle(self, op: Op, statuses: Sequence[Status], abandoned: bool) -> None:
        self._planner.settle(op.op_id, statuses, abandoned=abandoned)
        self._take_tier_events([op.tier])

    def _take_tier_events(self, tiers: Iterable[int]) -> None:
        for tier in tiers:
            for event in self._runner.take_events(tier):
                if event.removed:
                    self._planner.forget(tier, event.keys)
                self._hub.publish([event])

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        for op in self._running:
            op.unwanted.update(op.keys)
        for ticket in list(self._moves):
            self._announce(ticket)
        self._settled.set()
