"""The planner: which tier is asked for what, which block is promoted into which slot, which prefix is cut.

Pure and synchronous, so that an event loop and a step-driven engine can conduct the same plan. Callers open a ticket
and close it when they are done, cancelled or late; the planner puts *ops* into an outbox (:meth:`TieringPlanner.take`),
gets exactly one :meth:`TieringPlanner.settle` for each, and names the tickets that moved
(:meth:`TieringPlanner.take_woken`). Separating the plan from the waiting follows the sans-I/O style of h11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asyncoffload.core.cascades import Cascades
from asyncoffload.core.keeping import FIRST, Keeper, KeepsNothing
from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.pledges import Pledge
from asyncoffload.core.primary import Primary
from asyncoffload.core.probes import Hint, Probes
from asyncoffload.core.promotions import Promotions
from asyncoffload.core.reads import Reads
from asyncoffload.core.running import RunningOp, RunningOps
from asyncoffload.core.searches import Search, pass_over
from asyncoffload.core.tickets import Mode, Ticket
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Fate, LookupResult, Priority, Status, WritePolicy

MAX_OP_BLOCKS = 128
"""Blocks of one op: settling more of them at once would keep an event loop waiting."""

EVERY_TIER = -1


class TieringPlanner:
    """Plans reads and writes over one primary and any number of secondary tiers.

    Args:
        primary: the primary's plain calls.
        hints: one per tier, fastest tier first: "I believe I have it", without I/O; it saves a probe.
        promotion_blocks: how many blocks may be under promotion at a time.
        cascade_blocks: how many blocks may be on their way to each tier at a time.
        clean_window: how many of the coldest blocks are kept written ahead of their eviction, at least.
        write_policy: whether blocks are written to the tiers as soon as they are stored, or only when they are cold.
        keeper: what the conductor keeps pinned for callers who search.
    """

    def __init__(
        self,
        primary: Primary,
        hints: Sequence[Hint],
        *,
        promotion_blocks: int,
        cascade_blocks: int,
        clean_window: int = MAX_OP_BLOCKS,
        write_policy: WritePolicy = "write_through",
        keeper: Keeper | None = None,
    ) -> None:
        self._primary = primary
        self._table = primary.table
        self._every_tier = (1 << len(hints)) - 1
        self._probes = Probes(hints)
        self._promotions = Promotions(primary, promotion_blocks)
        self._cascades = Cascades(self._table, hints, policy=write_policy, limit=cascade_blocks, window=clean_window)
        self._keeper = KeepsNothing() if keeper is None else keeper
        self._turned_away = False
        self._running = RunningOps()
        self._next_kind = 0
        self._reads = Reads(self._table, self._probes, self._promotions)
        self.promoted = [0] * len(hints)
        self.refusals = self._probes.refusals

    # --- tickets ---

    def open(
        self,
        keys: Sequence[OffloadKey],
        mode: Mode,
        priority: Priority = Priority.DEMAND,
        *,
        tiers: int = EVERY_TIER,
        deadline: float | None = None,
        depth: int = 0,
    ) -> Ticket:
        """Open a ticket for keys that are all different; close it always, whatever happens."""
        ticket = self._reads.open(mode, priority, tiers & self._every_tier, deadline)
        ticket.depth = depth
        self._reads.extend(ticket, keys)
        return ticket

    def extend(self, ticket: Ticket, keys: Sequence[OffloadKey]) -> None:
        """Append keys to a ticket that has not been cut; one that has been ignores them."""
        self._reads.extend(ticket, keys)

    def expire(self, ticket: Ticket, cause: Status = Status.TIMED_OUT) -> None:
        """End a ticket's prefix where it stands; what it has stays pinned until it is closed."""
        self._reads.expire(ticket, cause)

    def close(self, ticket: Ticket) -> None:
        """Unpin what the ticket holds and stop wanting the rest; idempotent."""
        self._reads.close(ticket)

    def ahead_of(self, priority: Priority) -> dict[int, list[OffloadKey]]:
        """By tier, the blocks on their way from it, or in line for it, that a new wish of this priority waits for."""
        ahead: dict[int, list[OffloadKey]] = {}
        for op in self._running:
            if op.kind is OpKind.PROMOTE and op.priority <= priority:
                ahead.setdefault(op.tier, []).extend(key for key in op.keys if key not in op.unwanted)
        for fetch in self._promotions.ahead_of(priority):
            ahead.setdefault(fetch.tier, []).append(fetch.key)
        return ahead

    # --- searches ---

    def search(
        self,
        priority: Priority = Priority.DEMAND,
        *,
        tiers: int = EVERY_TIER,
        deadline: float | None = None,
        owner: str = "",
        place: int = FIRST,
    ) -> Search:
        """Open a growing ticket that pins nothing; close it always, whatever happens.

        Args:
            priority: how urgent it is.
            tiers: a bit for each tier that may be asked.
            deadline: when its time is over.
            owner: for whom what has landed is kept.
            place: its place among the searches of this priority: the smaller one gets slots first.
        """
        return self._reads.search(Search(priority, tiers & self._every_tier, deadline, owner=owner, place=place))

    def seek(self, search: Search, key: OffloadKey) -> LookupResult:
        """Ask for one key, and set going what it takes to make it ready; asked again and again, it never waits.

        Returns:
            ``HIT``: it is ready, and nothing keeps it so. ``RETRY``: a tier is being asked. ``HIT_PENDING``: it was
            found and waits for its promotion, or is being written. ``MISS``: no tier could give it, or its promotions
            did not last; that stays so until the ticket is closed or a store of the key completes.
        """
        return self._reads.seek(search, key)

    def forgive(self, search: Search, key: OffloadKey) -> None:
        """Forget that a search missed a key: the next :meth:`seek` asks the tiers again."""
        self._reads.forgive(search, key)

    def take_landed(self) -> list[tuple[str, OffloadKey]]:
        """The blocks that became ready for searches since the last call, and their owners; nothing keeps them so."""
        landed, self._reads.landed = self._reads.landed, []
        return landed

    # --- stores from the device ---

    def store_began(self, keys: Sequence[OffloadKey]) -> None:
        """Keys are being written from the device: who wants them waits for that instead of a tier."""
        self._reads.store_began(keys)

    def store_ended(self, keys: Sequence[OffloadKey]) -> None:
        """Writes from the device have ended, well or not: blocks that are ready go to who waits, and to the tiers."""
        for tier, shed in self._cascades.offer([key for key in keys if key in self._table.ready]):
            self._primary.journal.add(Fate.SHED, shed, tier=tier, why="cascade_blocks", call=OpKind.CASCADE.value)
        self._reads.store_ended(keys)

    # --- ops ---

    def take(self, max_blocks: int | None = None) -> list[Op | Hurry]:
        """What to start now: one tier call for each op, and advice.

        Args:
            max_blocks: stop after an op with which this many blocks are reached; the next call goes on with ops of
                another kind.
        """
        started: list[Op | Hurry] = [*self._reads.hurries]
        self._reads.hurries.clear()
        blocks, kinds = 0, (self._take_promotions, self._take_probes, self._take_cascades)
        first, self._next_kind = self._next_kind, 0
        for kind in (first, first + 1, first + 2):
            for op in kinds[kind % 3]():
                started.append(op)
                blocks += len(op.keys)
                if max_blocks is not None and blocks >= max_blocks:
                    self._next_kind = (kind + 1) % 3  # or new promotions might keep everything else waiting for ever
                    return started
        return started

    def _take_probes(self) -> Iterator[Op]:
        for tier, wanted in self._probes.take(MAX_OP_BLOCKS):
            yield self._running.fetch(OpKind.PROBE, tier, wanted)

    def _take_promotions(self) -> Iterator[Op]:
        self._reads.standstill.over()
        if self._turned_away:
            self._turned_away = False
            self._cascades.forgive()  # who comes next may find the tiers well again
        while (head := self._promotions.head) is not None:
            begun = self._promotions.begin()
            if begun is not None:
                fetches, write = begun
                op = self._running.fetch(OpKind.PROMOTE, fetches[0].tier, fetches, write)
                op.depths = [fetch.depth for fetch in fetches]
                self._table.set_depths(write.slot_array, op.depths)
                yield op
            elif self._cascades.make_room(1):
                continue
            elif self._table.available or not self._promotions.room:
                return
            elif not self._keeper.give_way(head.turn, self._promotions.room):
                if not self._at_standstill():
                    return
                if not any(self._keeper.still_asks(ticket.turn) for ticket in head.waiters if ticket.turn == head.turn):
                    self._promotions.put_back(pass_over(self._promotions.withdraw(), self._keeper.still_asks))
                elif not self._reads.relieve(None if self._keeper.keeps_for_others(head.turn) else head.turn):
                    if not self._reads.turn_away(head):
                        return
                    self._turned_away = True

    def _take_cascades(self) -> Iterator[Op]:
        self._cascades.offer_again()
        while (batch := self._cascades.take(MAX_OP_BLOCKS)) is not None:
            op = self._running.cascade(*batch)
            op.depths = self._table.depths_of(op.slots)
            yield op

    def _at_standstill(self) -> bool:
        """Whether every slot is held by callers who themselves wait for a slot: nobody will give one back."""
        table = self._table
        if self._running or self._cascades.busy or table.writing or table.quarantined_for_now:
            return False  # somebody will
        return table.pinned + len(table.doomed) == len(self._reads.book.slots_of_waiters() | self._keeper.slots())

    def settle(self, op_id: int, statuses: Sequence[Status], *, abandoned: bool = False) -> None:
        """An op has ended: one status per key, in the op's order.

        Args:
            op_id: the op.
            statuses: what became of its keys.
            abandoned: its slots stay in use, for longer than anybody should wait for them.

        Raises:
            InternalError: the op is not running, or the number of statuses is not that of its keys.
        """
        running = self._running.end(op_id, statuses)
        self._primary.journal.settled(running.op, statuses)
        if abandoned:
            self._table.strand(running.op.slots)
        if running.op.kind is OpKind.PROBE:
            self._reads.probed(running, statuses)
        elif running.op.kind is OpKind.PROMOTE:
            self._settle_promotion(running, statuses)
        else:
            self._cascades.settle(running.op.tier, running.op.keys, running.op.slots, statuses)

    def _settle_promotion(self, running: RunningOp, statuses: Sequence[Status]) -> None:
        assert running.write is not None
        arrived = self._promotions.end(running.write, statuses)
        self._table.mark_clean(arrived, running.op.tier)
        self.promoted[running.op.tier] += len(arrived)
        self._reads.promoted(running, statuses, arrived)

    # --- the whole ---

    def take_woken(self) -> list[Ticket]:
        """The tickets whose prefix moved or ended since the last call."""
        return self._reads.book.take_woken()

    def forget(self, tier: int, keys: Sequence[OffloadKey]) -> None:
        """A tier no longer has these blocks."""
        self._primary.journal.add(Fate.LEFT, keys, tier=tier)
        self._table.mark_dirty(keys, tier)

    def make_room(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey], *, insist: bool = False) -> bool:
        """There is no room for keys that are to be written while others are kept: have blocks made clean for it.

        Args:
            keys: the keys.
            keep: the others.
            insist: ask also tiers that took nothing of late.

        Returns:
            Whether to try again is not in vain.
        """
        return self._table.keeps_dirty and self._cascades.make_room(self._table.slots_for(keys, keep), insist=insist)

    def may_make_room(self, keys: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> bool:
        """Whether there may be room in a time that anybody should wait.

        False where dirty blocks stay and no tier takes any, and where too many slots are stranded.
        """
        if self._table.out_of_reach(keys, keep):
            return False
        return not self._table.keeps_dirty or self._cascades.may_make_room(self._table.slots_for(keys, keep))

    def flush(self) -> None:
        """Copy every block of the primary to the tiers that have no copy of it."""
        self._cascades.flush()

    def pledge(self) -> Pledge:
        """All that is on its way to the tiers now, for who waits until that has ended; to be released."""
        return self._cascades.pledge()

    def pledge_flush(self, before: Pledge | None = None) -> Pledge:
        """As :meth:`flush`, for who waits until that has ended; after another one, only for what is left of that."""
        return self._cascades.pledge_flush(before)

    def may_take_more(self, pledge: Pledge) -> bool:
        """Whether a tier has shed a part of what was flushed, which it may take later."""
        return self._cascades.may_take_more(pledge)

    def release(self, pledge: Pledge) -> None:
        """Nobody waits for a pledge any more, be it over or not; what it has in line remains there."""
        self._cascades.release(pledge)

    def reset(self) -> None:
        """Void every block of the primary, and stop copying them to the tiers."""
        self._primary.reset()
        self._drop_cascades()

    def shut(self, *, drain: bool = True) -> None:
        """Plan nothing new: open tickets end where they stand, and without ``drain`` cascades are dropped as well."""
        self._reads.shut = True
        for ticket in list(self._reads.book.open):
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
    def wants_slots(self) -> bool:
        """Whether a block that was found waits for its promotion to begin."""
        return self._promotions.head is not None

    @property
    def startable(self) -> bool:
        """Whether :meth:`take` may have something to start, as far as that can be told without trying."""
        return bool(self._reads.hurries or self._probes) or self.wants_slots or self._cascades.startable

    @property
    def settled(self) -> bool:
        """Whether no cascade is in flight, nor will be without further stores."""
        return self._cascades.idle

    @property
    def in_flight(self) -> list[Op]:
        """The ops that were taken and have not been settled."""
        return list(self._running)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is waiting to be started."""
        return not self._running and self._cascades.idle and not self._reads.hurries and not self._probes

    def cascade_counts(self, tier: int) -> dict[str, int]:
        """Blocks in flight to a tier, and stored, shed and failed so far."""
        return self._cascades.counts(tier)

    def shed_counts(self, tier: int) -> dict[str, int]:
        """What the blocks shed on their way to a tier ran into; see :meth:`Cascades.shed_counts`."""
        return self._cascades.shed_counts(tier)

    def __repr__(self) -> str:
        return (
            f"<TieringPlanner tickets={len(self._reads.book.open)} fetches={len(self._reads.book.fetches)} "
            f"queued={len(self._promotions)} ops={len(self._running)} {self._table!r}>"
        )
