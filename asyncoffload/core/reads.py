"""Reads: which blocks are wanted, where each of them may come from, and who gets it when it is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.keeping import Turn
from asyncoffload.core.ops import Hurry
from asyncoffload.core.probes import Probes
from asyncoffload.core.promotions import Promotions
from asyncoffload.core.running import RunningOp
from asyncoffload.core.searches import Search, is_needed
from asyncoffload.core.standstill import Standstill
from asyncoffload.core.tickets import NO_SLOT, PRIMARY, Fetch, FetchState, Mode, Ticket, TicketBook, by_ticket
from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult, Priority, Status

_HIT, _MISS, _RETRY, _HIT_PENDING = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY, LookupResult.HIT_PENDING
_PROBING, _MISSED = FetchState.PROBING, FetchState.MISSED


class Reads:
    """The life of every ticket, from the wish for a block to its pin.

    Args:
        table: the primary.
        probes: asks the tiers for blocks.
        promotions: brings those that were found.

    Attributes:
        book: the open tickets and what they wait for.
        hurries: advice for running ops.
        shut: whether whoever wants a block that is not ready ends at once.
        landed: blocks that became ready for a search, and its owner, since somebody last looked.
        standstill: whether nothing gets a slot, since all of them are kept for searches.
    """

    def __init__(self, table: BlockTable, probes: Probes, promotions: Promotions) -> None:
        self.book = TicketBook()
        self.hurries: list[Hurry] = []
        self.shut = False
        self.landed: list[tuple[str, OffloadKey]] = []
        self.standstill = Standstill()
        self._table = table
        self._probes = probes
        self._promotions = promotions

    def open(self, mode: Mode, priority: Priority, tiers: int, deadline: float | None) -> Ticket:
        """Open a ticket that wants nothing yet."""
        ticket = Ticket(mode, priority, tiers, deadline)
        self.book.open[ticket] = None
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
        if self.shut and missing:
            self._cut(ticket, missing[0], Status.CANCELLED)
        else:
            self._want(ticket, missing)
        self._advance(ticket)

    def expire(self, ticket: Ticket, cause: Status = Status.TIMED_OUT) -> None:
        """End a ticket's prefix where it stands; what it has stays pinned until it is closed."""
        self._undo(*ticket.expire(self.book, cause))
        self._advance(ticket)

    def close(self, ticket: Ticket) -> None:
        """Unpin what the ticket holds and stop wanting the rest; idempotent."""
        self._undo(*self.book.close(ticket))

    # --- asked key by key ---

    def search(self, search: Search) -> Search:
        """Open a search that wants nothing yet."""
        self.book.open[search] = None
        return search

    def seek(self, search: Search, key: OffloadKey) -> LookupResult:
        """Where a key stands that is asked for; what is not under way is set going."""
        if key in self._table.ready:
            return _HIT
        fetch = search.wanted.get(key)
        if fetch is None:
            fetch = self._set_going(search, key)
            if fetch is None:
                return _MISS
        elif fetch.state is _MISSED:
            if key in self.book.fetches:
                return _MISS
            search.drop(key)  # a store of the key has completed since
            return self.seek(search, key)
        elif search.parked and fetch in search.parked:
            search.enlist(fetch)
            self._share(search, 0, fetch)
            self._advance(search)
        elif self.standstill.lasts and fetch.state is FetchState.QUEUED and self.standstill.ends_patience(fetch):
            fetch.cause = Status.SHED
            self._miss(fetch)
        state = fetch.state
        if state is _PROBING:
            return _RETRY
        return _MISS if state is _MISSED else _HIT_PENDING

    def forgive(self, search: Search, key: OffloadKey) -> None:
        """Forget that a search missed a key."""
        search.landings.pop(key, None)
        fetch = search.wanted.get(key)
        if fetch is not None and fetch.state is _MISSED:
            search.drop(key)
            self._undo((), [] if fetch.waiters else [fetch])

    def relieve(self, hopeless: Turn | None) -> bool:
        """Nobody will give a slot back: whoever holds some and waits for more goes on with what he has.

        Args:
            hopeless: the turn for which all slots are kept and which wants more; None: some are kept for others.

        Returns:
            Whether somebody did. Otherwise the slots are kept for searches: what they ask for in vain becomes a miss
            after a while.
        """
        if self.book.slots_of_waiters():
            self.expire(self.book.youngest_holder(), Status.SHED)
            return True
        self.standstill.found(hopeless)
        return False

    def turn_away(self, fetch: Fetch) -> bool:
        """No slot will be had for a queued block: whoever waits for it, but for searches, goes on with what he has.

        Returns:
            Whether it left the queue; otherwise searches wait for it.
        """
        for ticket in [ticket for ticket in fetch.waiters if not ticket.asks_again]:
            self.expire(ticket, Status.SHED)
        if any(ticket.asks_again for ticket in fetch.waiters):
            return False
        if fetch.state is FetchState.QUEUED:
            fetch.state = FetchState.FOUND
        return True

    def _set_going(self, search: Search, key: OffloadKey) -> Fetch | None:
        if self.shut or search.over or not search.may_land(key):
            return None
        fetches = self.book.fetches
        fetch = fetches.get(key)
        if fetch is None or (fetch.state is _MISSED and search.tiers & ~fetch.refused):
            fetch = fetches[key] = search.begin(key, 0 if fetch is None else fetch.refused)
            tiers = search.tiers & ~fetch.refused
            if not tiers or key in self._table.doomed:
                self._miss(fetch)
            elif key in self._table.writing:
                fetch.state = FetchState.STORING
            else:
                self._probes.seek(fetch, tiers)
        else:
            search.enlist(fetch)
            if fetch.state is not _MISSED:
                self._share(search, 0, fetch)
        if not search.blocked:
            self._advance(search)
        return fetch

    # --- prefixes ---

    def _want(self, ticket: Ticket, missing: Sequence[int]) -> None:
        """Find out where keys may come from, or join those who have."""
        new, known = self.book.join(ticket, missing)
        for index, fetch in known:
            if ticket in fetch.waiters:  # unless an earlier one has cut the ticket
                self._share(ticket, index, fetch)
        doomed, writing = self._table.doomed, self._table.writing
        for fetch in new:
            if not fetch.waiters:
                self.book.forget(fetch)
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
        earlier = ticket.turn < fetch.turn
        if earlier:
            fetch.turn = ticket.turn
        if fetch.state is FetchState.MISSED:
            self._cut(ticket, index, fetch.cause)
        elif fetch.state is FetchState.STORING and ticket.mode is Mode.LOOK:
            self._cut(ticket, index, Status.MISSING)
        elif fetch.state is FetchState.PROMOTING and fetch.op is not None:
            fetch.op.unwanted.discard(fetch.key)
            if ticket.priority < fetch.op.priority:
                fetch.op.priority = ticket.priority
                self.hurries.append(Hurry(fetch.op.op_id, fetch.op.tier, ticket.priority))
        elif fetch.state is FetchState.QUEUED and earlier:
            self._promotions.push([fetch])

    def _cut(self, ticket: Ticket, at: int, cause: Status) -> None:
        self._undo(*ticket.cut(self.book, at, cause))
        self._advance(ticket)

    def _undo(self, slots: Sequence[int], idle: Iterable[Fetch]) -> None:
        if slots:
            self._table.unpin(slots)
        for fetch in idle:
            if fetch.state is FetchState.PROMOTING and fetch.op is not None:
                fetch.op.unwanted.add(fetch.key)
                fetch.dropped = True
            elif not fetch.waiters:
                self.book.forget(fetch)
            elif fetch.state is FetchState.QUEUED:
                fetch.state = FetchState.FOUND

    def _advance(self, ticket: Ticket) -> None:
        self._promotions.push(ticket.advance(self.book))

    # --- where a block may come from ---

    def probed(self, running: RunningOp, statuses: Sequence[Status]) -> None:
        """A tier has said what it has."""
        op = running.op
        moved = []
        for fetch, status in zip(running.fetches, statuses, strict=True):
            if fetch.op is op and fetch.state is FetchState.PROBING and fetch.waiters:
                moved.append(fetch)
                if status is Status.DONE:
                    fetch.state, fetch.tier = FetchState.FOUND, op.tier
                else:
                    self._probes.refuse(fetch, op.tier, status)
                    self._seek(fetch)
        self._reach(moved)

    def promoted(self, running: RunningOp, statuses: Sequence[Status], arrived: Sequence[OffloadKey]) -> None:
        """A promotion has ended: hand out what is ready, and look further for the rest."""
        op, fetches, _ = running
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
                self.book.forget(fetch)
            elif status is Status.DONE or (status is Status.CANCELLED and fetch.dropped):
                fetch.dropped = False
                fetch.state = FetchState.FOUND
                if is_needed(fetch):
                    self._promotions.push([fetch])
            else:
                self._probes.refuse(fetch, op.tier, status)
                self._seek(fetch)
                moved.append(fetch)
        self._reach(moved)

    def _seek(self, fetch: Fetch) -> None:
        """Turn to the next tier that may have the block; cut those for whom none is left."""
        tiers = fetch.tiers
        if not tiers:
            self._miss(fetch)
            return
        if len(fetch.waiters) > 1:
            for ticket in list(fetch.waiters):
                if not ticket.tiers & ~fetch.refused:
                    self._cut(ticket, ticket.rule_out(fetch), fetch.cause)
        self._probes.seek(fetch, tiers)

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
            slots = self._table.pin([fetch.key for fetch in mine]) if ticket.pins else repeat(NO_SLOT)
            self.landed += ticket.land(mine, slots)
            self._advance(ticket)
        for fetch in fetches:
            self.book.forget(fetch)

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
        """Writes from the device have ended, well or not: who waits gets the block, or asks the tiers after all."""
        ready = self._table.ready
        landed, failed = [], []
        for fetch in self._wanted(keys):
            if fetch.state is FetchState.MISSED:
                if fetch.key in ready:
                    self.book.forget(fetch)
            elif fetch.key in ready:
                landed.append(fetch)
            elif fetch.state is FetchState.STORING:
                self._seek(fetch)
                failed.append(fetch)
        self._land(landed)
        self._reach(failed)

    def _wanted(self, keys: Sequence[OffloadKey]) -> list[Fetch]:
        fetches = self.book.fetches
        return [fetches[key] for key in keys if key in fetches] if fetches else []
