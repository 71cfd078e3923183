"""The coroutine conductor of the planner: starts what it wants started, settles it, and sees it end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from asyncoffload.aio.waiting import outlive
from asyncoffload.core.journal import DEFAULT_JOURNAL_BLOCKS
from asyncoffload.core.ops import Hurry, Op
from asyncoffload.core.pledges import Pledge
from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.core.tickets import Ticket
from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.cpu import CPUOffloadingManager
from asyncoffload.managers.planned import broken
from asyncoffload.managers.planning import DEFAULT_PROMOTION_BYTES, planner_for
from asyncoffload.managers.runner import OpRunner
from asyncoffload.managers.tier_names import names_of, ops_by_name, still_at_work
from asyncoffload.managers.touching import Touches
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import ANONYMOUS, DirtyVictims, OffloadingEvent, RequestContext, Status, WritePolicy

logger = logging.getLogger(__name__)

STRETCH_BLOCKS = 64
"""Blocks that are opened, and started, in one stretch of the loop: planning a block takes a few microseconds, and a
loop should not be kept for half a millisecond."""
FLUSH_PAUSE = 0.5
"""Seconds that a tier is given to make room, where it took some of what was flushed and shed the rest."""
LONG_CLOSE = 10.0
"""Seconds after which closing says what it is waiting for."""


class ConductingManager(CPUOffloadingManager):
    """Runs the planner's ops in tasks of its own, never in a caller's, and tells the tickets that moved.

    Args:
        region, tiers and all others: as of :class:`~asyncoffload.managers.tiering.TieringOffloadingManager`.
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
        self._pledges: dict[Pledge, asyncio.Event] = {}
        self._pump_armed = False
        self._wished = 0  # keys of tickets since the pump last ran
        self._turn = asyncio.Lock()  # whose keys are next

    async def touch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
        await super().touch(keys, ctx)
        self._touches.add(keys)

    # ---- the whole

    async def settle(self) -> None:
        """Wait until every cascade that was offered before has ended. Cancellation: leaves at once; they go on."""
        self._check_open()
        await self._until_kept(self._plan(self._planner.pledge))

    async def flush(self) -> None:
        """Copy every block of the primary to the tiers that have no copy of it, and wait until that has ended.

        Blocks that are being written count, once they are ready, only for the next time. A tier that takes some and
        sheds others, as one that has to evict first, is given these again after half a second, as long as it takes
        some. What it does not take stays as it is, and is counted. Cancellation: leaves at once; the copying goes on.

        Raises:
            ClosedError: the manager was closed.
        """
        self._check_open()
        pledge = self._plan(self._planner.pledge_flush)
        await self._until_kept(pledge)
        while self._plan(self._planner.may_take_more, pledge):
            await asyncio.sleep(FLUSH_PAUSE)
            self._check_open()
            pledge = self._plan(self._planner.pledge_flush, pledge)
            await self._until_kept(pledge)

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
            LONG_CLOSE, lambda: logger.warning("closing waits for %s", ops_by_name(self._names, self._running))
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
            raise still_at_work(self._names, self._running, timeout, "close")

    def _drop_cascades(self) -> None:
        with suppress(InternalError):
            self._plan(self._planner.shut, drain=False)

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
            for pledge, kept in self._pledges.items():
                if pledge.over:
                    kept.set()
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
        for kept in self._pledges.values():
            kept.set()

    # ---- who waits

    async def _until_settled(self) -> None:
        if not self._plan(lambda: self._planner.settled):
            self._settled.clear()
            await self._settled.wait()
            self._check_intact()

    async def _until_kept(self, pledge: Pledge) -> None:
        kept = self._pledges[pledge] = asyncio.Event()
        try:
            if not pledge.over:
                await kept.wait()
                self._check_intact()
        finally:
            del self._pledges[pledge]
            self._planner.release(pledge)

    def _announce(self, ticket: Ticket) -> None:
        moved = self._moves.pop(ticket, None)
        if moved is not None:
            moved.set()

    def _check_intact(self) -> None:
        if self._failure is not None:
            raise broken(self._failure) from self._failure
