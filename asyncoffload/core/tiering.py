"""The planner: which tier is asked for what, which block is promoted into which slot, which prefix is cut.

Pure and synchronous, so that an event loop and a step-driven engine can conduct the same plan. Callers open a ticket
and close it when they are done, cancelled or late; the planner puts *ops* into an outbox (:meth:`TieringPlanner.take`),
gets exactly one :meth:`TieringPlanner.settle` for each, and names the tickets that moved
(:meth:`TieringPlanner.take_woken`). Separating the plan from the waiting follows the sans-I/O style of h11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import NamedTuple

from asyncoffload.core.block_table import Write
from asyncoffload.core.cascades import Cascades
from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.primary import Primary
from asyncoffload.core.promotions import PromotionQueue
from asyncoffload.core.tickets import NO_SLOT, PRIMARY, Fetch, FetchState, Mode, Ticket, TicketBook, by_ticket
from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority, Status

Hint = Callable[[OffloadKey], bool]

MAX_OP_BLOCKS = 256
MAX_PROMOTION_BLOCKS = 64
EVERY_TIER = -1


class _Running(NamedTuple):
    op: Op
    fetches: list[Fetch]
    write: Write | None


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
        self._max_promoting = max(1, promotion_blocks)
        self._book = TicketBook()
        self._queue = PromotionQueue()
        self._cascades = Cascades(self._table, len(self._hints), limit=cascade_blocks, window=clean_window)
        self._to_probe: list[list[Fetch]] = [[] for _ in self._hints]
        self._hurries: list[Hurry] = []
        self._running: dict[int, _Running] = {}
        self._op_ids = count(1)
        self._promoting = 0
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
        base = len(ticket.keys)
        slots = list(map(self._table.ready.get, keys))
        missing = [base + index for index, slot in enumerate(slots) if slot is None]
        if ticket.mode is Mode.HOLD:
            self._table.pin([key for key, slot in zip(keys, slots, strict=True) if slot is not None])
            ticket.slots.extend(NO_SLOT if slot is None else slot for slot in slots)
        else:
            ticket.slots.extend([NO_SLOT] * len(keys))
        ticket.keys.extend(keys)
        ticket.sources.extend([PRIMARY] * len(keys))
        ticket.fetches.extend([None] * len(keys))
        joined = [self._book.join(ticket, index) for index in missing]
        for index, (fetch, new) in zip(missing, joined, strict=True):
            if ticket.cut_at is not None:
                break
            self._consider(ticket, index, fetch, new=new)
        self._advance(ticket)

    def expire(self, ticket: Ticket, cause: Status = Status.TIMED_OUT) -> None:
        """End a ticket's prefix where it stands; what it has stays pinned until it is closed."""
        if not ticket.done:
            self._cut(ticket, ticket.pos, cause)

    def close(self, ticket: Ticket) -> None:
        """Unpin what the ticket holds and stop wanting the rest; idempotent."""
        self._undo(*self._book.close(ticket))

    def _consider(self, ticket: Ticket, index: int, fetch: Fetch, *, new: bool) -> None:
        """Decide what a fetch that a ticket has just joined needs."""
        if self._shut:
            self._cut(ticket, index, Status.CANCELLED)
        elif new:
            if fetch.key in self._table.doomed:
                self._miss(fetch)
            elif fetch.key in self._table.writing:
                fetch.state = FetchState.STORING
            else:
                self._seek(fetch)
        elif fetch.state is FetchState.MISSED:
            self._cut(ticket, index, fetch.cause)
        elif fetch.state is FetchState.PROMOTING and fetch.op is not None:
            fetch.op.unwanted.discard(fetch.key)
            if ticket.priority < fetch.op.priority:
                fetch.op.priority = ticket.priority
                self._hurries.append(Hurry(fetch.op.op_id, fetch.op.tier, ticket.priority))
        elif fetch.state is FetchState.QUEUED and ticket.priority < fetch.line:
            self._queue.push(fetch)
        if fetch.state is FetchState.STORING and ticket.mode is Mode.LOOK:
            self._cut(ticket, index, Status.MISSING)

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
        for fetch in self._book.advance(ticket):
            self._queue.push(fetch)

    # --- where a block may come from ---

    def _seek(self, fetch: Fetch) -> None:
        """Turn to the next tier that may have the block; cut those for whom none is left."""
        tiers = fetch.tiers
        if not tiers:
            self._miss(fetch)
            return
        for ticket, index in list(fetch.waiters.items()):
            if not ticket.tiers & ~fetch.refused:
                self._cut(ticket, index, fetch.cause)
        allowed = [tier for tier in range(len(self._hints)) if tiers >> tier & 1]
        hinted = next((tier for tier in allowed if self._hints[tier](fetch.key)), None)
        if hinted is not None:
            fetch.tier = hinted
            self._found(fetch)
        else:
            fetch.tier = allowed[0]
            fetch.state = FetchState.PROBING
            self._to_probe[fetch.tier].append(fetch)

    def _found(self, fetch: Fetch) -> None:
        fetch.state = FetchState.FOUND
        for ticket, index in list(fetch.waiters.items()):
            if index == ticket.scan:
                self._advance(ticket)
            elif index < ticket.scan and ticket.mode is Mode.HOLD and fetch.state is FetchState.FOUND:
                self._queue.push(fetch)

    def _miss(self, fetch: Fetch) -> None:
        fetch.state = FetchState.MISSED
        for ticket, index in list(fetch.waiters.items()):
            self._cut(ticket, index, fetch.cause)

    def _land(self, fetches: Sequence[Fetch]) -> None:
        """Give blocks that became ready to everybody who waits for them."""
        for ticket, mine in by_ticket(fetches, Mode.HOLD).items():
            slots = self._table.pin([fetch.key for fetch in mine])
            for fetch, slot in zip(mine, slots, strict=True):
                self._book.land(ticket, fetch.waiters[ticket], int(slot), fetch.tier)
            self._advance(ticket)
        for ticket, mine in by_ticket(fetches, Mode.LOOK).items():
            for fetch in mine:
                self._book.land(ticket, fetch.waiters[ticket], NO_SLOT, fetch.tier)
            self._advance(ticket)
        for fetch in fetches:
            self._book.forget(fetch)

    # --- stores from the device ---

    def store_began(self, keys: Sequence[OffloadKey]) -> None:
        """Keys are being written from the device: who wants them waits for that instead of a tier."""
        for fetch in self._wanted(keys):
            if fetch.state in (FetchState.PROBING, FetchState.FOUND, FetchState.QUEUED):
                fetch.state, fetch.tier = FetchState.STORING, PRIMARY
                for ticket, index in list(fetch.waiters.items()):
                    if ticket.mode is Mode.LOOK:
                        self._cut(ticket, index, Status.MISSING)
                    elif index == ticket.scan:
                        self._advance(ticket)

    def store_ended(self, keys: Sequence[OffloadKey]) -> None:
        """Writes from the device have ended, well or not: blocks that are ready go to the tiers and to who waits."""
        ready = [key for key in keys if key in self._table.ready]
        self._cascades.offer(ready)
        landed = []
        for fetch in self._wanted(keys):
            if fetch.state is FetchState.MISSED:
                if fetch.key in self._table.ready:
                    self._book.forget(fetch)
            elif fetch.key in self._table.ready:
                landed.append(fetch)
            elif fetch.state is FetchState.STORING:
                self._seek(fetch)
        self._land(landed)

    def _wanted(self, keys: Sequence[OffloadKey]) -> list[Fetch]:
        fetches = self._book.fetches
        return [fetches[key] for key in keys if key in fetches] if fetches else []

    # --- ops ---

    def take(self) -> list[Op | Hurry]:
        """What to start now: one tier call for each op, and advice."""
        started: list[Op | Hurry] = [*self._take_probes(), *self._take_promotions(), *self._take_cascades()]
        started.extend(self._hurries)
        self._hurries.clear()
        return started

    def _take_probes(self) -> Iterable[Op]:
        for tier, pending in enumerate(self._to_probe):
            wanted = [f for f in pending if f.state is FetchState.PROBING and f.waiters]
            pending.clear()
            for start in range(0, len(wanted), MAX_OP_BLOCKS):
                yield self._start(OpKind.PROBE, tier, wanted[start : start + MAX_OP_BLOCKS])

    def _take_promotions(self) -> Iterable[Op]:
        while (head := self._queue.head()) is not None and self._promoting < self._max_promoting:
            room = min(self._table.available, self._max_promoting - self._promoting, MAX_PROMOTION_BLOCKS)
            if room > 0:
                op = self._promote(room)
                if op is None:
                    return
                yield op
            elif self._at_standstill():
                for ticket, index in list(head.waiters.items()):
                    self._cut(ticket, index, Status.SHED)
            else:
                return

    def _promote(self, room: int) -> Op | None:
        """Start the next promotion, of fewer blocks where memory that is still in use keeps slots back."""
        while room:
            batch = self._queue.take(room)
            write = self._primary.begin_store([fetch.key for fetch in batch])
            if write is not None:
                self._promoting += len(batch)
                return self._start(OpKind.PROMOTE, batch[0].tier, batch, write)
            self._queue.put_back(batch)
            room = len(batch) // 2
        return None

    def _take_cascades(self) -> Iterable[Op]:
        self._cascades.clean()
        for tier, keys, slots in self._cascades.take(MAX_OP_BLOCKS):
            op = Op(next(self._op_ids), OpKind.CASCADE, tier, keys, slots, Priority.CASCADE)
            self._running[op.op_id] = _Running(op, [], None)
            yield op

    def _start(self, kind: OpKind, tier: int, fetches: list[Fetch], write: Write | None = None) -> Op:
        deadlines = [deadline for fetch in fetches if (deadline := fetch.deadline) is not None]
        op = Op(
            next(self._op_ids),
            kind,
            tier,
            [fetch.key for fetch in fetches],
            [int(slot) for slot in write.slots] if write is not None else (),
            min(fetch.priority for fetch in fetches),
            min(deadlines, default=None),
        )
        for fetch in fetches:
            fetch.op = op
        self._running[op.op_id] = _Running(op, fetches, write)
        return op

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
        running = self._running.pop(op_id, None)
        if running is None or len(statuses) != len(running.op.keys):
            raise InternalError(f"op {op_id} settled with {len(statuses)} statuses: {running and running.op!r}")
        if running.op.kind is OpKind.CASCADE:
            self._cascades.settle(running.op.tier, running.op.keys, running.op.slots, statuses)
        elif running.write is None:
            self._settle_probe(running.op, running.fetches, statuses)
        else:
            self._settle_promotion(running.op, running.fetches, running.write, statuses)

    def _settle_probe(self, op: Op, fetches: list[Fetch], statuses: Sequence[Status]) -> None:
        asking = [
            (fetch, status)
            for fetch, status in zip(fetches, statuses, strict=True)
            if fetch.op is op and fetch.state is FetchState.PROBING and self._book.is_current(fetch)
        ]
        for fetch, status in asking:
            if status is not Status.DONE:
                self._refuse(fetch, op.tier, status)
                self._seek(fetch)
        for fetch, status in asking:
            if status is Status.DONE and fetch.state is FetchState.PROBING and self._book.is_current(fetch):
                self._found(fetch)

    def _settle_promotion(self, op: Op, fetches: list[Fetch], write: Write, statuses: Sequence[Status]) -> None:
        self._promoting -= len(fetches)
        ready = set(self._primary.finish_store(write, [status is Status.DONE for status in statuses]))
        self._table.mark_clean([key for key in op.keys if key in ready], op.tier)
        self.promoted[op.tier] += len(ready)
        self._land([fetch for fetch in fetches if fetch.key in ready])
        for fetch, status in zip(fetches, statuses, strict=True):
            if fetch.key in ready:
                continue
            if not fetch.waiters:
                self._book.forget(fetch)
            elif status is Status.DONE or (status is Status.CANCELLED and fetch.dropped):
                fetch.dropped = False
                self._queue.push(fetch)
            else:
                self._refuse(fetch, op.tier, status)
                self._seek(fetch)

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

    def shut(self, *, drain: bool = True) -> None:
        """Plan nothing new: open tickets end where they stand, and without ``drain`` cascades are dropped as well."""
        self._shut = True
        if not drain:
            self._cascades.close()
            for running in self._running.values():
                running.op.unwanted.update(running.op.keys)
        for ticket in list(self._book.open):
            self.expire(ticket, Status.CANCELLED)

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
            f"queued={len(self._queue)} ops={len(self._running)} {self._table!r}>"
        )
