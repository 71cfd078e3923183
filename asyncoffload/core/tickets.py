"""Tickets: who waits for which key, and how long the prefix is that each of them can have.

A *ticket* is one caller's interest in a list of keys; a *fetch* is one key that somebody wants and that is not ready.
Tickets share fetches. Nothing here decides where a block comes from: the planner does, and tells the tickets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import ClassVar, TypeAlias

from asyncoffload.core.keeping import FIRST, Turn
from asyncoffload.core.ops import Op
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority, Status

NO_SLOT = -1
DEEPEST = 1 << 24
"""The place in its prompt of a block that nobody waits for at a place of its own."""
PRIMARY = -1


Effects: TypeAlias = "tuple[Sequence[int], Sequence[Fetch]]"
"""Slots to unpin, and fetches that nobody needs any more."""


class Mode(Enum):
    """What a ticket asks for."""

    LOOK = auto()
    """How long is the prefix that some tier holds? Moves and pins nothing."""
    HOLD = auto()
    """Make the prefix ready and keep it pinned until the ticket is closed."""


class FetchState(Enum):
    """Where a wanted key stands on its way to the primary."""

    PROBING = auto()
    FOUND = auto()
    QUEUED = auto()
    PROMOTING = auto()
    STORING = auto()
    MISSED = auto()


ON_ITS_WAY = frozenset({FetchState.FOUND, FetchState.QUEUED, FetchState.PROMOTING, FetchState.STORING})


class Fetch:
    """One key that is wanted and not ready.

    Attributes:
        tier: the tier being asked, or the one that has the block.
        refused: bit per tier that answered no.
        cause: why the block could not be had, once a tier refused it.
        op: the op that was last started for it.
        turn: that of the first of all tickets that ever waited for it.
        dropped: the running promotion was told that nobody wants the key, so it may come back cancelled.
        stalls: how often it was asked for in vain while nobody would give a slot back for it.
        last_stall: when that was last counted.
        waiters: the tickets that want the key, and its index in each.
    """

    __slots__ = (
        "cause",
        "dropped",
        "key",
        "last_stall",
        "op",
        "refused",
        "stalls",
        "state",
        "tier",
        "turn",
        "waiters",
    )

    def __init__(self, key: OffloadKey, ticket: Ticket, index: int, refused: int = 0) -> None:
        self.key = key
        self.state = FetchState.PROBING
        self.tier = PRIMARY
        self.refused = refused
        self.cause = Status.MISSING
        self.op: Op | None = None
        self.turn = ticket.turn
        self.dropped = False
        self.stalls = self.last_stall = 0
        self.waiters = {ticket: index}

    @property
    def tiers(self) -> int:
        """Bit per tier that somebody allows and that has not refused yet."""
        allowed = 0
        for ticket in self.waiters:
            allowed |= ticket.tiers
        return allowed & ~self.refused

    @property
    def depth(self) -> int:
        """How many blocks of a prompt come before it, for whoever wants it."""
        return min(DEEPEST, *(ticket.depth + index for ticket, index in self.waiters.items()))

    def refuse(self, tier: int, cause: Status) -> None:
        """Note that a tier could not give the block."""
        self.refused |= 1 << tier
        if cause is not Status.MISSING:
            self.cause = cause

    def __repr__(self) -> str:
        return f"<Fetch {self.key.hex()[:12]} {self.state.name} tier={self.tier} waiters={len(self.waiters)}>"


class Ticket:
    """One caller's interest in a list of keys.

    Attributes:
        keys: the wanted keys; it may grow until the ticket is cut.
        slots: the pinned slot of each key, NO_SLOT where none is pinned.
        sources: per key the index of the tier it came from, PRIMARY where it was ready already.
        pos: length of the prefix that is ready (HOLD) or known to exist (LOOK).
        cut_at: where the prefix ends for good; None while it may still reach the end.
        stopped_by: why it was cut.
        turn: when it is served, among those who wait for slots.
        depth: how many blocks of the prompt come before its first key.
        asks_again: its caller asks for each key again and again, and does not go on with a part of them by itself.
    """

    asks_again: ClassVar[bool] = False

    __slots__ = (
        "closed",
        "cut_at",
        "deadline",
        "depth",
        "fetches",
        "keys",
        "mode",
        "pos",
        "priority",
        "scan",
        "slots",
        "sources",
        "stopped_by",
        "tiers",
        "turn",
    )

    def __init__(
        self, mode: Mode, priority: Priority, tiers: int, deadline: float | None, *, place: int = FIRST
    ) -> None:
        self.mode = mode
        self.priority = priority
        self.turn: Turn = (int(priority), place)
        self.tiers = tiers
        self.deadline = deadline
        self.depth = 0
        self.keys: list[OffloadKey] = []
        self.slots: list[int] = []
        self.sources: list[int] = []
        self.fetches: list[Fetch | None] = []
        self.pos = 0
        self.scan = 0
        self.cut_at: int | None = None
        self.stopped_by: Status | None = None
        self.closed = False

    @property
    def end(self) -> int:
        """Where the prefix ends at the latest."""
        return len(self.keys) if self.cut_at is None else self.cut_at

    @property
    def done(self) -> bool:
        """Whether the prefix has reached its end."""
        return self.pos >= self.end

    @property
    def pins(self) -> bool:
        """Whether blocks are pinned for it as they become ready."""
        return self.mode is Mode.HOLD

    def cut(self, book: TicketBook, at: int, cause: Status) -> Effects:
        """End the prefix at an index, unless it ends earlier already.

        A missed key stays wanted by the ticket that it cut, so that the verdict lives as long as the ticket.
        """
        if at >= self.end and self.cut_at is not None:
            return [], []
        self.cut_at, self.stopped_by = at, cause
        frontier = self.fetches[at] if at < len(self.fetches) else None
        keep = at + 1 if frontier is not None and frontier.state is FetchState.MISSED else at
        effects = self.let_go(keep)
        self.scan, self.pos = min(self.scan, at), min(self.pos, at)
        book.wake(self)
        return effects

    def expire(self, book: TicketBook, cause: Status) -> Effects:
        """End the prefix where it stands."""
        return ([], []) if self.done else self.cut(book, self.pos, cause)

    def rule_out(self, fetch: Fetch) -> int:
        """A key cannot be had by this ticket, while others may go on; returns where it has to be cut."""
        return fetch.waiters[self]

    def let_go(self, start: int = 0) -> Effects:
        """Want nothing any more from an index on."""
        slots = [slot for slot in self.slots[start:] if slot != NO_SLOT]
        orphans = []
        for fetch in self.fetches[start:]:
            if fetch is not None:
                del fetch.waiters[self]
                if not fetch.waiters:
                    orphans.append(fetch)
        del self.keys[start:], self.slots[start:], self.sources[start:], self.fetches[start:]
        return slots, orphans

    def advance(self, book: TicketBook) -> list[Fetch]:
        """Move the prefix forward; returns found fetches that are now in reach and want promotion."""
        found = []
        end, fetches, slots = self.end, self.fetches, self.slots
        hold = self.mode is Mode.HOLD
        scan = self.scan
        while scan < end:
            fetch = fetches[scan]
            if fetch is not None:
                if fetch.state is FetchState.FOUND:
                    found.append(fetch)
                elif fetch.state not in ON_ITS_WAY:
                    break
            scan += 1
        self.scan = pos = scan
        if hold:
            pos = self.pos
            while pos < end and slots[pos] != NO_SLOT:
                pos += 1
        if pos != self.pos:
            self.pos = pos
            book.wake(self)
        return found if hold else []

    def land(self, fetches: Iterable[Fetch], slots: Iterable[int]) -> list[tuple[str, OffloadKey]]:
        """Keys became ready, in slots that are pinned for the ticket or not (NO_SLOT).

        Returns:
            For whom the conductor has to keep which of them.
        """
        for fetch, slot in zip(fetches, slots, strict=False):
            index = fetch.waiters[self]
            self.fetches[index] = None
            self.slots[index] = slot
            self.sources[index] = fetch.tier
        return []

    def __repr__(self) -> str:
        state = "closed" if self.closed else "done" if self.done else "waiting"
        return f"<Ticket {self.mode.name} {self.pos}/{self.end} of {len(self.keys)} keys, {state}>"


class TicketBook:
    """All open tickets and the fetches that they share.

    Every method changes the book and returns what the planner has to do about it; none of them calls up.
    """

    def __init__(self) -> None:
        self.open: dict[Ticket, None] = {}
        self.fetches: dict[OffloadKey, Fetch] = {}
        self._woken: dict[Ticket, None] = {}

    def join(self, ticket: Ticket, indices: Iterable[int]) -> tuple[list[Fetch], list[tuple[int, Fetch]]]:
        """Make a ticket wait for some of its keys.

        A verdict that does not bind this ticket, because it allows a tier that was not asked, is taken over by a new
        fetch: who was cut stays cut.

        Returns:
            The fetches that are new, and those that others wait for already, with the key's index in the ticket.
        """
        fetches, keys = self.fetches, ticket.keys
        new: list[Fetch] = []
        known: list[tuple[int, Fetch]] = []
        for index in indices:
            key = keys[index]
            fetch = fetches.get(key)
            if fetch is None:
                fetch = fetches[key] = Fetch(key, ticket, index)
                new.append(fetch)
            elif fetch.state is FetchState.MISSED and ticket.tiers & ~fetch.refused:
                fetch = fetches[key] = Fetch(key, ticket, index, fetch.refused)
                new.append(fetch)
            else:
                fetch.waiters[ticket] = index
                known.append((index, fetch))
            ticket.fetches[index] = fetch
        return new, known

    def close(self, ticket: Ticket) -> Effects:
        """Forget a ticket."""
        ticket.closed = True
        self.open.pop(ticket, None)
        self._woken.pop(ticket, None)
        return ticket.let_go()

    def slots_of_waiters(self) -> set[int]:
        """The slots that are pinned for tickets which have not reached their end."""
        slots = {slot for ticket in self.open if not ticket.done for slot in ticket.slots}
        return slots - {NO_SLOT}

    def youngest_holder(self) -> Ticket:
        """Who gives up where all who hold slots wait for another: of the least urgent the youngest."""
        holders = [ticket for ticket in self.open if not ticket.done and max(ticket.slots) != NO_SLOT]
        return max(reversed(holders), key=lambda ticket: ticket.priority)

    def forget(self, fetch: Fetch) -> None:
        """Drop a fetch, unless its key is wanted anew by another one."""
        if self.fetches.get(fetch.key) is fetch:
            del self.fetches[fetch.key]

    def wake(self, ticket: Ticket) -> None:
        """Note that a ticket moved."""
        if not ticket.closed:
            self._woken[ticket] = None

    def take_woken(self) -> list[Ticket]:
        """The tickets that moved since the last call."""
        woken = list(self._woken)
        self._woken.clear()
        return woken


def by_ticket(fetches: Iterable[Fetch]) -> dict[Ticket, list[Fetch]]:
    """The waiting tickets, each with those of the fetches that it waits for."""
    groups: dict[Ticket, list[Fetch]] = {}
    for fetch in fetches:
        for ticket in fetch.waiters:
            if ticket in groups:
                groups[ticket].append(fetch)
            else:
                groups[ticket] = [fetch]
    return groups
