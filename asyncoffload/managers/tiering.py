"""The manager of a primary tier with secondary tiers behind it: the coroutine conductor of the planner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.ops import Hurry, Op
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.tickets import Mode, Ticket
from asyncoffload.core.tiering import EVERY_TIER, MAX_OP_BLOCKS, TieringPlanner
from asyncoffload.errors import ConfigError, InternalError, InvalidArgument, TierUnavailable
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.managers.cpu import CPUOffloadingManager
from asyncoffload.managers.runner import OpRunner
from asyncoffload.managers.tiered_lease import TieredLoadLease
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import ANONYMOUS, CPULoadStoreSpec, RequestContext, Status

DEFAULT_PROMOTION_BYTES = 256 << 20


class TieringOffloadingManager(CPUOffloadingManager):
    """Blocks in the slots of host memory, written through to slower tiers and brought back from them.

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
        clock: seconds; the clock of the deadlines.

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            region.n_slots,
            policy=policy,
            memory=region,
            store_threshold=store_threshold,
            block_size=block_size,
            n_tiers=len(tiers),
            clock=clock,
        )
        self._tiers = tuple(tiers)
        self._names = [tier.tier_type for tier in tiers]
        if len({CPULoadStoreSpec.medium(), *self._names}) <= len(self._names):
            raise ConfigError(
                f"every tier needs a name of its own, and none is {CPULoadStoreSpec.medium()}: {self._names}"
            )
        self._planner = TieringPlanner(
            self._primary,
            [tier.hint for tier in tiers],
            promotion_blocks=promotion_bytes // region.slot_bytes,
            cascade_blocks=max(1, region.n_slots // 4) if cascade_blocks is None else cascade_blocks,
        )
        self._runner = OpRunner(tiers, region, clock=clock)
        self._running: dict[asyncio.Task[None], Op] = {}
        self._moves: dict[Ticket, asyncio.Future[None]] = {}
        self._settled = asyncio.Event()
        self._pump_armed = False

    # ---- reading over tiers

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """The length of the prefix that the primary or an allowed tier holds; it moves and pins nothing.

        At the deadline it answers with what it knows by then.
        """
        ready = await super().lookup(keys, ctx)
        if ready == len(keys) or not self._tiers:
            return ready
        async with self._ticket(keys[ready:], Mode.LOOK, ctx) as ticket:
            await self._until_done(ticket)
            return ready + ticket.pos

    async def prepare_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> CPULoadStoreSpec:
        self._check_open()
        if self._primary.lookup(keys) == len(keys):
            return await super().prepare_load(keys, ctx)
        async with self._ticket(keys, Mode.HOLD, ctx) as ticket:
            await self._until_done(ticket)
            return self._plan(self._primary.prepare_load, keys)

    @asynccontextmanager
    async def loading(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, streaming: bool = False
    ) -> AsyncIterator[TieredLoadLease]:
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
        """Wait until every cascade that was offered has ended.

        Cancellation: leaves at once; the cascades go on.
        """
        self._check_open()
        if not self._planner.settled:
            self._settled.clear()
            await self._settled.wait()
        self._check_open()

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work and end all waiting; cascades finish within ``drain_timeout``, promotions are dropped.

        Raises:
            TierUnavailable: a tier still works on slots ``timeout`` seconds later; their memory must stay.

        Cancellation: cascades are dropped as well, what runs is still awaited, then the cancellation is raised.
        """
        await super().aclose()
        if self._failure is None:
            self._plan(self._planner.shut)
        await outlive(asyncio.ensure_future(self._close(drain, drain_timeout, timeout)), self._drop_cascades)

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        if self._running and drain:
            await asyncio.wait(self._running, timeout=drain_timeout)
        self._drop_cascades()
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)
        if self._running:
            raise TierUnavailable(
                f"tiers still work {timeout} s after closing, leave their memory alone and close again: "
                + ", ".join(f"{self._names[op.tier]} {op!r}" for op in self._running.values())
            )

    def _drop_cascades(self) -> None:
        if self._failure is None:
            self._plan(self._planner.shut, drain=False)

    def tier_counts(self) -> dict[str, dict[str, int]]:
        """Per tier: blocks promoted, cascades by their outcome, and blocks it could not give, by status."""
        planner = self._planner
        return {
            name: {
                "promoted": planner.promoted[tier],
                **planner.cascade_counts(tier),
                **{status.value: count for status, count in planner.refusals[tier].items()},
            }
            for tier, name in enumerate(self._names)
        }

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}, tiers {', '.join(self._names) or 'none'}, {self._planner!r}>"

    # ---- tickets

    @asynccontextmanager
    async def _ticket(self, keys: Sequence[OffloadKey], mode: Mode, ctx: RequestContext) -> AsyncIterator[Ticket]:
        """A ticket that is closed whatever happens; long ones are opened piece by piece, so that the loop breathes."""
        self._check_open()
        keys = checked_keys(keys)
        tiers = self._allowed(ctx)
        ticket = self._plan(
            self._planner.open, keys[:MAX_OP_BLOCKS], mode, ctx.priority, tiers=tiers, deadline=ctx.deadline
        )
        try:
            for start in range(MAX_OP_BLOCKS, len(keys), MAX_OP_BLOCKS):
                await asyncio.sleep(0)
                self._plan(self._planner.extend, ticket, keys[start : start + MAX_OP_BLOCKS])
            yield ticket
        finally:
            if self._failure is None:
                self._plan(self._planner.close, ticket)

    def _allowed(self, ctx: RequestContext) -> int:
        if ctx.tiers is None:
            return EVERY_TIER
        if unknown := ctx.tiers.difference(self._names):
            raise InvalidArgument(f"there is no tier {', '.join(sorted(unknown))}; there are {', '.join(self._names)}")
        return sum(1 << self._names.index(name) for name in ctx.tiers)

    async def _until_done(self, ticket: Ticket) -> None:
        while not ticket.done:
            await self._until_moved(ticket)

    async def _until_moved(self, ticket: Ticket) -> None:
        """Wait until the ticket's prefix has moved or ended; at its deadline it ends."""
        patience = None if ticket.deadline is None else ticket.deadline - self._clock()
        moved = self._moves[ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await moved
        except TimeoutError:
            self._plan(self._planner.expire, ticket, Status.TIMED_OUT)
        finally:
            self._moves.pop(ticket, None)

    # ---- ops

    def _store_began(self, keys: Sequence[OffloadKey]) -> None:
        self._planner.store_began(keys)

    def _store_ended(self, keys: Sequence[OffloadKey]) -> None:
        self._planner.store_ended(keys)

    def _after_change(self) -> None:
        super()._after_change()
        if not self._pump_armed and self._loop is not None:
            self._pump_armed = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start what the planner wants started: once per loop iteration, so that who asks together shares probes."""
        self._pump_armed = False
        try:
            for item in self._planner.take():
                if isinstance(item, Hurry):
                    self._runner.hurry(item)
                else:
                    self._running[asyncio.ensure_future(self._conduct(item))] = item
            for ticket in self._planner.take_woken():
                moved = self._moves.pop(ticket, None)
                if moved is not None and not moved.done():
                    moved.set_result(None)
            if self._planner.settled:
                self._settled.set()
            super()._after_change()
        except Exception as error:  # a broken plan must reach everybody who waits for it
            self._fail(error)

    async def _conduct(self, op: Op) -> None:
        """Run one op in a task of the manager, never in a caller's, and settle it exactly once."""
        statuses = [Status.CANCELLED] * len(op.keys)
        try:
            statuses = await self._runner.run(op)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._running.pop(task, None)
            if self._failure is None:
                with suppress(InternalError):  # whoever waits has been told
                    self._plan(self._settle, op, statuses)

    def _settle(self, op: Op, statuses: Sequence[Status]) -> None:
        self._planner.settle(op.op_id, statuses)
        for event in self._tiers[op.tier].take_events():
            if event.removed:
                self._planner.forget(op.tier, event.keys)
            self._hub.publish([event])

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        for moved in self._moves.values():
            if not moved.done():
                moved.set_exception(self._internal_error())
        self._moves.clear()
        self._settled.set()
