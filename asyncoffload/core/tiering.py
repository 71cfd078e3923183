"""The planner: which tier is asked for what, which block is promoted into which slot, which prefix is cut.

Pure and synchronous, so that an event loop and a step-driven engine can conduct the same plan. Callers open a ticket
and close it when they are done, cancelled or late; the planner puts *ops* into an outbox (:meth:`TieringPlanner.take`),
gets exactly one :meth:`TieringPlanner.settle` for each, and names the tickets that moved
(:meth:`TieringPlanner.take_woken`). Separating the plan from the waiting follows the sans-I/O style of h11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat

from asyncoffload.core.cascades import Cascades
from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.primary import Primary
from asyncoffload.core.promotions import Promotions
from asyncoffload.core.running import RunningOp, RunningOps
from asyncoffload.core.tickets import NO_SLOT, PRIMARY, Fetch, FetchState, Mode, Ticket, TicketBook, by_ticket
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority, Status

Hint = Callable[[OffloadKey], bool]

MAX_OP_BLOCKS = 256
"""Blocks of one op, and of one piece of planning: more of them at once would keep an event loop waiting."""

EVERY_TIER = -1


class TieringPlanner:
    """Plans reads and writes over one primary and any number of secondary tiers.

    Args:
        primary: the primary's plain calls.
        hints: one per tier, fastest tier first: "I believe I have it", without I/O; it saves a probe.
        promotion_blocks: how many blocks may be under promotion at a time.
        cascade_blocks: how many blocks may be on their way to each tier at a time.
        clean_window: how many of the coldest blocks are kept written ahead of their eviction.
    """

    def __init__(
        self,
        primary: Primary,
        hints: Sequence[Hint],
        *,
        promotion_blocks: int,
        cascade_blocks: int,
        clean_window: int = MAX_OP_BLOCKS,
    ) -> None:
        self._primary = primary
        self._table = primary.table
        self._hints = tuple(hints)
        self._every_tier = (1 << len(self._hints)) - 1
        self._book = TicketBook()
        self._to_probe: list[list[Fetch]] = [[] for _ in self._hints]
        self._promotions = Promotions(primary, promotion_blocks)
        self._cascades = Cascades(self._table, len(self._hints), limit=cascade_blocks, window=clean_window)
        self._running = RunningOps()
        self._hurries: list[Hurry] = []
        self._shut = False
        self.promoted = [0] * len(self._hints)
        self.refusals: list[dict[Status, int]] = [{} for _ in self._hints]

    # --- tickets ---

    def open(
        self,
        keys: Sequence[OffloadKey],
        mode: Mode,
        priority: Priority = Priority.DEMAND,
        *,
        tiers: int = EVERY_TIER,
        deadline: float | None = None,
    ) -> Ticket:
        """Open a ticket for keys that are all different; close it always, whatever happens."""
        ticket = Ticket(mode, priority, tiers & self._every_tier, deadline)
        self._book.open[ticket] = None
        self.extend(ticket, keys)
        return ticket

    def extend(self, ticket: Ticket, keys: Sequence[OffloadKey]) -> None:
        """Append keys to a ticket that has not been cut; one that has been ignores them."""
        if ticket.cut_at is not None or ticket.closed:
            return
        ready = self._table.ready
        missing = [index for index, key in enumerate(keys, len(ticket.keys)) if key not in ready]
        if ticket.mode is Mode.HOLD:
            self._table.pin([key for key in keys if key in ready])
            ticket.slots.extend(ready.get(key, NO_SLOT) for key in keys)
        else:
            ticket.slots.extend(repeat(NO_SLOT, len(keys)))
        ticket.keys.extend(keys)
        ticket.sources.extend(repeat(PRIMARY, len(keys)))
        ticket.fetches.extend(repeat(None, len(keys)))
        if self._shut and missing:
            self._cut(ticket, missing[0], Status.CANCELLED)
        else:
            self._want(ticket, missing)
        self._advance(ticket)

    def expire(self, ticket: Ticket, cause: Status = Status.TIMED_OUT) -> None:
        """End a ticket's prefix where it stands; what it has stays pinned until it is closed."""
        if not ticket.done:
            self._cut(ticket, ticket.pos, cause)

    def close(self, ticket: Ticket) -> None:
        """Unpin what the ticket holds and stop wanting the rest; idempotent."""
        self._undo(*self._book.close(ticket))

    def _want(self, ticket: Ticket, missing: Sequence[int]) -> None:
        """Find out where keys may come from, or join those who have."""
        new, known = self._book.join(ticket, missing)
        for index, fetch in known:
            if ticket in fetch.waiters:  # unless an earlier one has cut the ticket
                self._share(ticket, index, fetch)
        doomed, writing = self._table.doomed, self._table.writing
        for fetch in new:
            if not fetch.waiters:
                self._book.forget(fetch)
            elif fetch.key in doomed:
                self._miss(fetch)
            elif fetch.key not in writing:
                self._seek(fetch)
            elif ticket.mode is Mode.HOLD:
                fetch.state = FetchState.STORING
            else:
                self._cut(ticket, fetch.waiters[ticket], Status.MISSING)

    def _share(self, ticket: Ticket, index: int, fetch: Fetch) -> None:
        """A ticket has joined others who wait for a fetch."""
        urgent = ticket.priority < fetch.priority
        if urgent:
            fetch.priority = ticket.priority
        if fetch.state is FetchState.MISSED:
            self._cut(ticket, index, fetch.cause)
        elif fetch.state is FetchState.STORING and ticket.mode is Mode.LOOK:
            self._cut(ticket, index, Status.MISSING)
        elif fetch.state is FetchState.PROMOTING and fetch.op is not None:
            fetch.op.unwanted.discard(fetch.key)
            if ticket.priority < fetch.op.priority:
                fetch.op.priority = ticket.priority
                self._hurries.append(Hurry(fetch.op.op_id, fetch.op.tier, ticket.priority))
        elif fetch.state is FetchState.QUEUED and urgent:
            self._promotions.push([fetch])

    def _cut(self, ticket: Ticket, at: int, cause: Status) -> None:
        self._undo(*self._book.cut(ticket, at, cause))
        self._advance(ticket)

    def _undo(self, slots: list[int], orphans: Iterable[Fetch]) -> None:
        if slots:
            self._table.unpin(slots)
        for fetch in orphans:
            if fetch.state is FetchState.PROMOTING and fetch.op is not None:
                fetch.op.unwanted.add(fetch.key)
                fetch.dropped = True
            else:
                self._book.forget(fetch)

    def _advance(self, ticket: Ticket) -> None:
        self._promotions.push(self._book.advance(ticket))

    # --- where a block may come from ---

    def _seek(self, fetch: Fetch) -> None:
        """Turn to the next tier that may have the block; cut those for whom none is left."""
        tiers = fetch.tiers
        if not tiers:
            self._miss(fetch)
            return
        if len(fetch.waiters) > 1:
            for ticket, index in list(fetch.waiters.items()):
                if not ticket.tiers & ~fetch.refused:
                    self._cut(ticket, index, fetch.cause)
        for tier, hint in enumerate(self._hints):
            if tiers >> tier & 1 and hint(fetch.key):
                fetch.state, fetch.tier = FetchState.FOUND, tier
                return
        fetch.state, fetch.tier = FetchState.PROBING, (tiers & -tiers).bit_length() - 1
        self._to_probe[fetch.tier].append(fetch)

    def _reach(self, fetches: Sequence[Fetch]) -> None:
        """Fetches have moved: so do the tickets that wait for them, and what was found in their reach is queued."""
        for ticket in by_ticket(fetches):
            self._advance(ticket)
        for fetch in fetches:
            if fetch.state is FetchState.FOUND and any(
                ticket.mode is Mode.HOLD and index < ticket.scan for ticket, index in fetch.waiters.items()
            ):
                self._promotions.push([fetch])

    def _miss(self, fetch: Fetch) -> None:
        fetch.state = FetchState.MISSED
        for ticket, index in list(fetch.waiters.items()):
            self._cut(ticket, index, fetch.cause)

    def _land(self, fetches: Sequence[Fetch]) -> None:
        """Give blocks that became ready to everybody who waits for them."""
        for ticket, mine in by_ticket(fetches).items():
            hold = ticket.mode is Mode.HOLD
            slots = self._table.pin([fetch.key for fetch in mine]) if hold else repeat(NO_SLOT)
            self._book.land(ticket, mine, slots)
            self._advance(ticket)
        for fetch in fetches:
            self._book.forget(fetch)

    # --- stores from the device ---

    def store_began(self, keys: Sequence[OffloadKey]) -> None:
        """Keys are being written from the device: who wants them waits for that instead of a tier."""
        overtaken = [
            fetch
            for fetch in self._wanted(keys)
            if fetch.state in (FetchState.PROBING, FetchState.FOUND, FetchState.QUEUED)
        ]
        for fetch in overtaken:
            fetch.state, fetch.tier = FetchState.STORING, PRIMARY
            for ticket, index in list(fetch.waiters.items()):
                if ticket.mode is Mode.LOOK:
                    self._cut(ticket, index, Status.MISSING)
        self._reach(overtaken)

    def store_ended(self, keys: Sequence[OffloadKey]) -> None:
        """Writes from the device have ended, well or not: blocks that are ready go to the tiers and to who waits."""
        ready = self._table.ready
        self._cascades.offer([key for key in keys if key in ready])
        landed, failed = [], []
        for fetch in self._wanted(keys):
            if fetch.state is FetchState.MISSED:
                if fetch.key in ready:
                    self._book.forget(fetch)
            elif fetch.key in ready:
                landed.append(fetch)
            elif fetch.state is FetchState.STORING:
                self._seek(fetch)
                failed.append(fetch)
        self._land(landed)
        self._reach(failed)

    def _wanted(self, keys: Sequence[OffloadKey]) -> list[Fetch]:
        fetches = self._book.fetches
        return [fetches[key] for key in keys if key in fetches] if fetches else []

    # --- ops ---

    def take(self, max_blocks: int | None = None) -> list[Op | Hurry]:
        """What to start now: one tier call for each op, and advice.

        Args:
            max_blocks: stop after an op with which this many blocks are reached; the next call goes on from there.
        """
        started: list[Op | Hurry] = [*self._hurries]
        self._hurries.clear()
        blocks = 0
        for op in chain(self._take_probes(), self._take_promotions(), self._take_cascades()):
            started.append(op)
            blocks += len(op.keys)
            if max_blocks is not None and blocks >= max_blocks:
                break
        return started

    def _take_probes(self) -> Iterator[Op]:
        for tier, pending in enumerate(self._to_probe):
            while pending:
                asked, pending[:MAX_OP_BLOCKS] = pending[:MAX_OP_BLOCKS], []
                wanted = [fetch for fetch in asked if fetch.state is FetchState.PROBING and fetch.waiters]
                if wanted:
                    yield self._running.fetch(OpKind.PROBE, tier, wanted)

    def _take_promotions(self) -> Iterator[Op]:
        while (head := self._promotions.head) is not None:
            begun = self._promotions.begin()
            if begun is not None:
                fetches, write = begun
                yield self._running.fetch(OpKind.PROMOTE, fetches[0].tier, fetches, write)
            elif not self._table.available and self._at_standstill():
                for ticket, index in list(head.waiters.items()):
                    self._cut(ticket, index, Status.SHED)
            else:
                return

    def _take_cascades(self) -> Iterator[Op]:
        self._cascades.clean()
        while (batch := self._cascades.take(MAX_OP_BLOCKS)) is not None:
            yield self._running.cascade(*batch)

    def _at_standstill(self) -> bool:
        """Whether every slot is held by callers who themselves wait for a slot: nobody will give one back."""
        table = self._table
        if self._running or table.writing or table.quarantined:
            return False
        waiting = {slot for ticket in self._book.open if not ticket.done for slot in ticket.slots}
        return table.pinned + len(table.doomed) == len(waiting - {NO_SLOT})

    def settle(self, op_id: int, statuses: Sequence[Status]) -> None:
        """An op has ended: one status per key, in the op's order.

        Raises:
            InternalError: the op is not running, or the number of statuses is not that of its keys.
        """
        running = self._running.end(op_id, statuses)
        if running.op.kind is OpKind.PROBE:
            self._settle_probe(running, statuses)
        elif running.op.kind is OpKind.PROMOTE:
            self._settle_promotion(running, statuses)
        else:
            self._cascades.settle(running.op.tier, running.op.keys, running.op.slots, statuses)

    def _settle_probe(self, running: RunningOp, statuses: Sequence[Status]) -> None:
        op = running.op
        moved = []
        for fetch, status in zip(running.fetches, statuses, strict=True):
            if fetch.op is op and fetch.state is FetchState.PROBING and fetch.waiters:
                moved.append(fetch)
                if status is Status.DONE:
                    fetch.state, fetch.tier = FetchState.FOUND, op.tier
                else:
                    self._refuse(fetch, op.tier, status)
                    self._seek(fetch)
        self._reach(moved)

    def _settle_promotion(self, running: RunningOp, statuses: Sequence[Status]) -> None:
        op, fetches, write = running
        assert write is not None
        arrived = self._promotions.end(write, statuses)
        self._table.mark_clean(arrived, op.tier)
        self.promoted[op.tier] += len(arrived)
        if len(arrived) == len(fetches):
            self._land(fetches)
            return
        ready = set(arrived)
        self._land([fetch for fetch in fetches if fetch.key in ready])
        moved = []
        for fetch, status in zip(fetches, statuses, strict=True):
            if fetch.key in ready:
                continue
            if not fetch.waiters:
                self._book.forget(fetch)
            elif status is Status.DONE or (status is Status.CANCELLED and fetch.dropped):
                fetch.dropped = False
                self._promotions.push([fetch])
            else:
                self._refuse(fetch, op.tier, status)
                self._seek(fetch)
                moved.append(fetch)
        self._reach(moved)

    def _refuse(self, fetch: Fetch, tier: int, status: Status) -> None:
        fetch.refuse(tier, status)
        self.refusals[tier][status] = self.refusals[tier].get(status, 0) + 1

    # --- the whole ---

    def take_woken(self) -> list[Ticket]:
        """The tickets whose prefix moved or ended since the last call."""
        return self._book.take_woken()

    def forget(self, tier: int, keys: Sequence[OffloadKey]) -> None:
        """A tier no longer has these blocks."""
        self._table.mark_dirty(keys, tier)

    def reset(self) -> None:
        """Void every block of the primary, and stop copying them to the tiers."""
        self._primary.reset()
        self._drop_cascades()

    def shut(self, *, drain: bool = True) -> None:
        """Plan nothing new: open tickets end where they stand, and without ``drain`` cascades are dropped as well."""
        self._shut = True
        for ticket in list(self._book.open):
            self.expire(ticket, Status.CANCELLED)
        if not drain:
            self._cascades.close()
            self._drop_cascades()

    def _drop_cascades(self) -> None:
        self._cascades.drop()
        for op in self._running:
            if op.kind is OpKind.CASCADE:
                op.unwanted.update(op.keys)

    @property
    def settled(self) -> bool:
        """Whether no cascade is offered or in flight."""
        return self._cascades.idle

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is waiting to be started."""
        return not self._running and self._cascades.idle and not self._hurries and not any(self._to_probe)

    def cascade_counts(self, tier: int) -> dict[str, int]:
        """Blocks in flight to a tier, and stored, shed and failed so far."""
        return self._cascades.counts(tier)

    def __repr__(self) -> str:
        return (
            f"<TieringPlanner tickets={len(self._book.open)} fetches={len(self._book.fetches)} "
            f"queued={len(self._promotions)} ops={len(self._running)} {self._table!r}>"
        )
