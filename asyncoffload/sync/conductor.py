"""Runs the planner's ops on the loop, and carries plans and results between its thread and the caller's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.tickets import PRIMARY
from asyncoffload.core.tiering import TieringPlanner
from asyncoffload.errors import InternalError, WrongLoopError
from asyncoffload.managers.conducting import STRETCH_BLOCKS
from asyncoffload.managers.planned import broken
from asyncoffload.managers.runner import OpRunner
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.handover import Handover
from asyncoffload.sync.promises import Promises
from asyncoffload.types import OffloadingEvent, Status

TURN_STRETCHES = 16
"""Such stretches that the loop does at a time."""
LOOP_SETTLES = 256
"""Keys that the loop settles while a caller may be kept waiting for the core."""
CALLER_SETTLES = 1024
"""Keys that one step of the caller settles at most at its beginning, and at its end."""
PATIENCE_STEPS = 32
"""After so many steps and calls without a turn of the loop that is due, the caller does the loop's part."""
GLANCE_SECONDS = 0.1
"""How often somebody who waits for the loop looks whether it is still alive."""


class Report(NamedTuple):
    """What the loop has for the core: what became of an op, events of a tier, or both."""

    tier: int
    events: Sequence[OffloadingEvent]
    op: Op | None = None
    statuses: Sequence[Status] = ()
    abandoned: bool = False


class Conductor:
    """The core of a step-driven manager, and the loop behind it.

    Whoever has the core plans: the caller within its steps, the loop in *turns* between them. Ops run on the loop,
    and what comes of them waits in an inbox for whoever has the core next. Nothing is lost between the two: the loop
    says that it wants the core before it tries to take it, and the caller looks for that after it has given it back.

    Args:
        planner: the core.
        table: the primary.
        runner: calls the tiers.
        n_tiers: how many there are.
        region: the memory of the slots.
        promises: what must not be evicted.
        loop: where ops run.
        publish: takes events of tiers, by whoever has the core.
        date: called before the core is given back: what it has written down happened now.

    Attributes:
        handover: who has the core.
        failure: why nothing works any more.
        sources: per slot the index of the tier that its block was promoted from, PRIMARY where it came from a device.
        changed: the plan may have something to start; set by whoever has the core.
        running: the ops that run on the loop, and their tasks.
    """

    def __init__(
        self,
        planner: TieringPlanner,
        table: BlockTable,
        runner: OpRunner,
        n_tiers: int,
        region: HostRegion,
        promises: Promises,
        loop: LoopThread,
        publish: Callable[[Iterable[OffloadingEvent]], None],
        date: Callable[[], None],
    ) -> None:
        self.handover = Handover(loop.check)
        self.failure: BaseException | None = None
        self.sources = [PRIMARY] * region.n_slots
        self.changed = False
        self.running: dict[Op, asyncio.Task[None]] = {}
        self._planner = planner
        self._table = table
        self._runner = runner
        self._n_tiers = n_tiers
        self._region = region
        self._promises = promises
        self._loop = loop
        self._publish = publish
        self._date = date
        self._inbox: deque[Report] = deque()
        self._turn_wanted = False
        self._turn_armed = False
        self._collecting = False
        self._steps_without_turn = 0
        self._moved = threading.Event()
        region.on_release(self._arm)

    # ---- the caller's part

    def enter(self) -> bool:
        """Take the core, for a step or a call within one; returns whether it is the outermost.

        Raises:
            WrongLoopError: another thread is in a step, or this process was forked from the manager's.
            InternalError: something is broken.
        """
        if self.failure is not None:
            raise broken(self.failure) from self.failure
        self._loop.check()
        outermost = self.handover.enter()
        if outermost and self._inbox:
            try:
                self._guarded(self._settle_inbox, CALLER_SETTLES)
            except BaseException:
                self.handover.leave()
                raise
        return outermost

    def leave(self) -> None:
        """Give the core back, and see to it that the loop goes on with what the step has planned.

        Raises:
            InternalError: something is broken. The core was given back all the same.
        """
        if not self.handover.outermost:
            self.handover.leave()
            return
        wanted = self._turn_wanted
        startable = False
        try:
            if self.failure is None:
                if self._inbox:
                    self._guarded(self._settle_inbox, CALLER_SETTLES)
                if self.changed:
                    self.changed = False
                    startable = self._planner.startable
                self._steps_without_turn += 1
                if (wanted or self._turn_armed) and self._steps_without_turn > PATIENCE_STEPS:
                    self._guarded(self.start)
        finally:
            self._date()
            self.handover.leave()
        if startable or self._inbox or self._turn_wanted:
            self._arm()

    def start(self) -> None:
        """Plan what can be started, and have the loop start it."""
        started = self._plan()
        if started:
            self._loop.post(lambda: self._begin(started))

    def collect_events(self) -> None:
        """Have the loop fetch the events of all tiers; they come with a later turn."""
        if self._n_tiers and not self._collecting:
            self._collecting = True
            self._loop.post(self._collect)

    @property
    def idle(self) -> bool:
        """Whether no op is in flight and neither inbox nor outbox holds anything; for who has the core."""
        planner = self._planner
        return not self._inbox and planner.idle and not (planner.wants_slots and self._table.available)

    @property
    def at_rest(self) -> bool:
        """Whether it is idle, and no tier touches a slot, not even one whose job it has abandoned."""
        return self.idle and not self.running

    def wait(self, until: Callable[[], bool], timeout: float | None) -> bool:
        """Block until something holds that is asked in the core; returns whether it came to hold in time.

        Raises:
            InternalError: something is broken, or the loop's thread has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._moved.clear()
            self.enter()
            try:
                self._guarded(self._settle_inbox, CALLER_SETTLES)
                self._guarded(self.start)
                holds = until()
            finally:
                self.leave()
            if holds:
                return True
            left = GLANCE_SECONDS if deadline is None else min(GLANCE_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return False
            self._moved.wait(left)

    def await_news(self, timeout: float) -> None:
        """Let the loop have the interpreter until an op has ended or, at the latest, so many seconds later."""
        self._moved.clear()
        if self.running and not self._inbox:
            self._moved.wait(timeout)

    # ---- with the core

    def _plan(self) -> list[Op | Hurry]:
        planner = self._planner
        self.release_slots()
        if planner.wants_slots:
            self._promises.secure()
        return planner.take(STRETCH_BLOCKS)

    def release_slots(self) -> None:
        """Hand slots out again that nobody moves bytes of any more; for who has the core."""
        released = self._region.take_released()
        if released:
            self._table.release(released)

    def _settle_inbox(self, max_keys: int) -> None:
        inbox = self._inbox
        while inbox and max_keys > 0:
            report = inbox.popleft()
            op = report.op
            if op is not None:
                max_keys -= len(op.keys)
                self._planner.settle(op.op_id, report.statuses, abandoned=report.abandoned)
                if op.kind is OpKind.PROMOTE:
                    for slot, status in zip(op.slots, report.statuses, strict=True):
                        if status is Status.DONE:
                            self.sources[slot] = op.tier
            for event in report.events:
                if event.removed:
                    self._planner.forget(report.tier, event.keys)
            self._publish(report.events)
            self.changed = True
        landed = self._planner.take_landed()
        if landed:
            self._promises.landed(landed)

    def _guarded(self, call: Callable[..., None], *args: int) -> None:
        try:
            call(*args)
        except BaseException as error:
            self.give_up(error)

    # ---- the loop's part

    def _arm(self) -> None:
        if not self._turn_armed:
            self._turn_armed = True
            with suppress(InternalError, WrongLoopError):  # there is no loop any more: the next call will say so
                self._loop.post(self._turn)

    def _turn(self) -> None:
        """Settle, plan and start, if the core can be had; otherwise its holder will see to it that we come again.

        The core is given back after each stretch, so that a caller need not wait for long. The loop itself is kept
        for several: where the engine computes in the interpreter, each of its iterations may cost it a switch interval.
        """
        self._turn_armed = False
        for _ in range(TURN_STRETCHES):
            self._turn_wanted = True
            if self.failure is not None or not self.handover.try_enter():
                return
            self._turn_wanted = False
            self._steps_without_turn = 0
            started: Sequence[Op | Hurry] = ()
            reported = bool(self._inbox)
            try:
                self._settle_inbox(LOOP_SETTLES)
                started = self._plan()
            except Exception as error:  # whoever calls next must hear of it
                self.fail(error)
                return
            finally:
                self._date()
                self.handover.leave_loop()
            if not started and not reported:
                return
            self._begin(started)
            self._moved.set()
        self._arm()

    def _begin(self, started: Sequence[Op | Hurry]) -> None:
        try:
            if self.failure is not None:
                return
            for item in started:
                if isinstance(item, Hurry):
                    self._runner.hurry(item)
                else:
                    self.running[item] = self._loop.loop.create_task(self._conduct(item))
        except Exception as error:
            self.fail(error)

    async def _conduct(self, op: Op) -> None:
        try:
            await self._runner.run(op, self._report)
        except Exception as error:
            self.fail(error)
        finally:
            self.running.pop(op, None)
            self._moved.set()

    def _report(self, op: Op, statuses: Sequence[Status], *, abandoned: bool) -> None:
        self._inbox.append(Report(op.tier, self._runner.take_events(op.tier), op, statuses, abandoned))
        self._moved.set()
        self._turn()

    def _collect(self) -> None:
        self._collecting = False
        for tier in range(self._n_tiers):
            events = self._runner.take_events(tier)
            if events:
                self._inbox.append(Report(tier, events))
                self._arm()

    # ---- the end

    def fail(self, error: BaseException) -> None:
        """Something is broken: what runs may end early, and every later call raises."""
        if self.failure is None:
            self.failure = error
            self.handover.revoke()
        for op in list(self.running):
            op.unwanted.update(op.keys)
        self._moved.set()

    def give_up(self, error: BaseException) -> NoReturn:
        """Planning ended with this error, and who knows what was left half done: raise what its caller should see."""
        self.fail(error)
        if isinstance(error, Exception):
            raise broken(self.failure) from error
        raise error

    def what_runs(self) -> list[Op]:
        """The ops that are in flight, for errors."""
        if self.failure is not None:
            return list(self.running)
        self.enter()
        try:
            return list(dict.fromkeys([*self._planner.in_flight, *list(self.running)]))
        finally:
            self.leave()

    async def see_ops_end(self, timeout: float) -> None:
        """Wait on the loop until no op runs, for at most so many seconds."""
        if self.running:
            await asyncio.wait(list(self.running.values()), timeout=timeout)
