"""A planner that a caller owns during its steps, and a loop between them: what every call of a manager stands on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from types import TracebackType

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.journal import DEFAULT_JOURNAL_BLOCKS, Journal
from asyncoffload.core.policies import LRU, EvictionPolicy
from asyncoffload.core.primary import Primary, PrimaryStats
from asyncoffload.errors import (
    ClosedError,
    InternalError,
    OffloadError,
    WrongLoopError,
)
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.base import DEFAULT_EVENT_CAPACITY
from asyncoffload.managers.events import EventSubscription
from asyncoffload.managers.explaining import Explainer
from asyncoffload.managers.planned import broken
from asyncoffload.managers.planning import DEFAULT_PROMOTION_BYTES, planner_for, quarter_of
from asyncoffload.managers.runner import OpRunner
from asyncoffload.managers.tier_names import counts_by_name, names_of, still_at_work
from asyncoffload.managers.touching import Touches
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.closing import GRACE_SECONDS
from asyncoffload.sync.conductor import Conductor
from asyncoffload.sync.promises import Promises
from asyncoffload.sync.requests import Requests
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import ANONYMOUS, DirtyVictims, Explanation, OffloadingEvent, RequestContext, WritePolicy


class SteppedManager:
    """The steps of a step-driven manager, and the manager as a whole.

    Args:
        region: the memory of the slots; it outlives the manager.
        tiers: the secondary tiers, asked in this order. They outlive the manager, are not closed by it, and live on
            the same loop.
        policy: who is evicted from the primary; least recently used by default.
        store_threshold: a block is stored from this offer on.
        block_size: tokens per block, for events.
        promotion_bytes: bound on the bytes on their way into the primary: at least what the tiers can deliver in the
            time of a step.
        cascade_blocks: bound on the blocks on their way into each tier; what exceeds it is shed and offered again
            later. By default a quarter of the primary.
        write_policy: whether blocks are written to the tiers as soon as they are stored, or only when they are about
            to be evicted.
        dirty_victims: what happens where only blocks that no tier has could make room: they are dropped, and counted
            as lost; or what needs room is refused, and the tiers are given these blocks.
        journal_blocks: how many blocks' lives are remembered for :meth:`explain`; 0 for none.
        clock: seconds; the clock of the deadlines.
        loop: by default the loop that all facades of this process share.

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
        journal_blocks: int = DEFAULT_JOURNAL_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
        loop: LoopThread | None = None,
    ) -> None:
        self._names = names_of(tiers)
        table = BlockTable(
            region.n_slots,
            policy or LRU(),
            n_tiers=len(tiers),
            keep_dirty=dirty_victims == "refuse",
            held_among=region.held_among,
        )
        self._ready: dict[OffloadKey, int] = table.ready
        self._writing = table.writing
        journal = Journal(journal_blocks)
        self._primary = Primary(table, store_threshold=store_threshold, block_size=block_size, journal=journal)
        self._explainer = Explainer(table, journal, clock=clock)
        self._explainer.tiers, self._explainer.names = tuple(tiers), self._names
        self._promises = Promises(table, 2 * quarter_of(region))
        runner = OpRunner(tiers, region, clock=clock)
        self._planner = planner_for(
            self._primary,
            tiers,
            runner,
            region,
            promotion_bytes=promotion_bytes,
            cascade_blocks=cascade_blocks,
            write_policy=write_policy,
            keeper=self._promises,
        )
        self._loop = LoopThread.shared() if loop is None else loop
        self._touches = Touches(tiers, clock)
        self._conductor = Conductor(
            self._planner,
            table,
            runner,
            len(tiers),
            region,
            self._promises,
            self._loop,
            self._publish,
            self._explainer.date,
        )
        self._handover = self._conductor.handover
        self._call = _Call(self._conductor)
        self._requests = Requests(self._planner, self._promises.claims, self._names, clock)
        self._asking: RequestContext | None = None
        self._hit: Callable[[OffloadKey], None]
        self._events: EventSubscription | None = None
        self._closed = False

    # ---- steps

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of the engine, as a ``with`` block: the core belongs to this thread until its end."""
        self.begin_step()
        try:
            yield
        except BaseException:
            with suppress(InternalError):  # the exception that ended the block is the one to see
                self.end_step()
            raise
        self.end_step()

    def begin_step(self) -> None:
        """Begin a step: the core belongs to this thread until :meth:`end_step`.

        It waits for the loop for a fraction of a millisecond at most. What the loop has brought meanwhile is settled,
        up to 1,024 keys.
        """
        if self._conductor.enter():
            self._asking = None

    def end_step(self) -> None:
        """End the step. Hits of it may be evicted now, by stores and for who came before; the loop goes on planning.

        Raises:
            WrongLoopError: this thread is in no step.
        """
        conductor = self._conductor
        if self._handover.stepper != get_ident() and conductor.failure is None:
            raise WrongLoopError("there is no step to end on this thread: begin_step and end_step come in pairs")
        if self._handover.outermost and conductor.failure is None:
            self._promises.end_step()
            self._requests.end_step()
        conductor.leave()
        if conductor.failure is not None:
            raise broken(conductor.failure) from conductor.failure

    # ---- the whole

    def take_events(self) -> Sequence[OffloadingEvent]:
        """What appeared and left since the last call, oldest first; nothing before the first call.

        Events of tiers come with the next call after the loop has fetched them.
        """
        with self._call:
            if self._events is None:
                self._events = EventSubscription(DEFAULT_EVENT_CAPACITY)
                self._primary.recording = True
            self._conductor.collect_events()
            self._publish(())
            return self._events.take()

    def reset(self) -> None:
        """Void every block of the primary. Those that are read or written go with their last holder."""
        with self._call:
            self._check_open()
            self._promises.clear()
            self._planner.reset()
            self._conductor.changed = True

    def stats(self) -> PrimaryStats:
        """The primary in numbers of blocks. Those kept for who was told that they are there may count as pinned."""
        with self._call:
            return self._primary.stats()

    def explain(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> Explanation:
        """Where a block is, was, when and why it left; ``str()`` of the answer is for humans. It changes nothing.

        It blocks while the tiers are asked, until the deadline or for ten seconds at most.

        Raises:
            InvalidArgument: the key is malformed, or the context names a tier that does not exist.
        """
        with self._call:
            self._check_open()
            answer = self._explainer.question(key, ctx)
        return self._loop.run(answer)

    def tier_counts(self) -> dict[str, dict[str, int]]:
        """Per tier: blocks promoted; cascades ``in_flight``, ``stored``, ``shed`` and ``failed``; and as
        ``refused_missing``, ``refused_corrupt`` and so on how often it could not give a block that was asked for.
        """
        with self._call:
            return counts_by_name(self._names, self._planner)

    def flush(self) -> None:
        """Have every block of the primary copied to the tiers that have no copy of it; :meth:`drain_jobs` waits for it.

        Blocks that are being written count, once they are ready, only for the next time.

        Raises:
            ClosedError: the manager was shut down.
        """
        with self._call:
            self._check_open()
            self._planner.flush()
            self._conductor.changed = True

    def has_pending_work(self) -> bool:
        """Whether an op is in flight, or something waits to be started or settled."""
        with self._call:
            return not self._conductor.idle

    def await_news(self, timeout: float) -> None:
        """Block until one of the ops in flight has ended, for at most ``timeout`` seconds; at once if there is none.

        For an engine that has nothing to compute while it waits for blocks: stepping on at once would keep the
        interpreter from the threads that bring them. Between two steps, not within one.
        """
        self._conductor.await_news(timeout)

    def drain_jobs(self, timeout: float | None = None) -> None:
        """Block until nothing is in flight: no probe, promotion or cascade, and none waits to be started.

        That includes jobs that a tier has abandoned, as long as it may touch their slots.

        Args:
            timeout: seconds; None: as long as it takes.

        Raises:
            TierUnavailable: something is still in flight; it names it.
        """
        if not self._conductor.wait(lambda: self._conductor.at_rest, timeout):
            raise still_at_work(self._names, self._conductor.what_runs(), timeout, "drain")

    def shutdown(self, timeout: float = 30.0) -> None:
        """Take no new work, drop what is queued, and wait for what runs, which is asked to stop; idempotent.

        Args:
            timeout: seconds to wait for what runs.

        Raises:
            TierUnavailable: a tier still works on slots, whose memory must stay; it names the ops.
            InternalError: the bookkeeping is broken, or the loop has ended.
        """
        try:
            with self._call:
                self._closed = True
                self._ready = {}  # no shortcut to a hit any more
                self._promises.clear()
                self._requests.end_all()
                self._planner.shut(drain=False)
            self._loop.post(self._touches.stop)
            if self._conductor.wait(lambda: self._conductor.at_rest, timeout):
                return
        except InternalError:
            with suppress(TimeoutError):
                self._loop.run(lambda: self._conductor.see_ops_end(timeout), timeout + GRACE_SECONDS)
            if not self._conductor.running:
                raise
        raise still_at_work(self._names, self._conductor.what_runs(), timeout, "shut down")

    def __repr__(self) -> str:
        state = "broken" if self._conductor.failure is not None else "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}, tiers {', '.join(self._names) or 'none'}: {self._planner!r}>"

    # ---- inside

    def _publish(self, events: Iterable[OffloadingEvent]) -> None:
        """Hand on what the primary recorded, and then these."""
        if self._events is not None:
            for source in (self._primary.take_events(), events):
                for event in source:
                    self._events.put(event)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} takes no new work")


class _Call:
    """One call: it takes the core, unless it is part of a step, and tells what an exception in it means."""

    __slots__ = ("_conductor",)

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def __enter__(self) -> None:
        self._conductor.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, OffloadError):
                self._conductor.give_up(error)
        finally:
            self._conductor.leave()
