"""Searches: callers who ask key by key, again and again, and never wait.

A step-driven engine asks every key of every waiting request once per step. Its ticket therefore grows, pins nothing
and is never cut: each key has an answer of its own, and the caller decides what a miss means for the others.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable

from asyncoffload.core.keeping import FIRST, Turn
from asyncoffload.core.tickets import Effects, Fetch, FetchState, Mode, Ticket, TicketBook
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority, Status

PARKED = sys.maxsize
"""The place in the line of a key that is not promoted unless it is asked for again."""

MAX_LANDINGS = 3
"""How often a block is promoted for a search that lets it be evicted each time before it is used."""

MAX_KEPT_LANDINGS = 24
"""The same where somebody keeps it, so that it only leaves for others who come first."""


NOBODY: tuple[int, Fetch | None] = (0, None)


class Search(Ticket):
    """One caller's interest in keys that it asks for one by one, in the order in which it can use them.

    A found key is promoted once nothing that was asked for before it is still being probed, so that nothing is
    brought in behind a hole. A key that was asked for before a miss was known, and comes after it, is parked: most
    callers stop at a miss and will not ask for it again.

    In the eyes of others it is a ticket that wants blocks made ready, with no keys and nothing to wait for.

    Attributes:
        wanted: the keys that are not ready, as far as they were asked for; those in the line in its order.
        parked: those of their fetches that wait to be asked for again.
        landings: how often each key became ready during the search, and was not used since.
        over: nothing more is sought: what is not ready is a miss.
        owner: for whom the conductor keeps what has landed; empty: for nobody in particular.
    """

    asks_again = True

    __slots__ = ("_asked", "_line", "landings", "over", "owner", "parked", "wanted")

    def __init__(
        self, priority: Priority, tiers: int, deadline: float | None, *, owner: str = "", place: int = FIRST
    ) -> None:
        super().__init__(Mode.HOLD, priority, tiers, deadline, place=place)
        self.owner = owner
        self.wanted: dict[OffloadKey, Fetch] = {}
        self.parked: set[Fetch] = set()
        self.landings: dict[OffloadKey, int] = {}
        self.over = False
        self._line: deque[tuple[int, Fetch]] = deque()
        self._asked = 0

    def begin(self, key: OffloadKey, refused: int) -> Fetch:
        """A key is asked for that nobody wants yet: it goes to the end of the line."""
        index = self._asked
        fetch = self.wanted[key] = Fetch(key, self, index, refused)
        self._line.append((index, fetch))
        self._asked = index + 1
        return fetch

    def enlist(self, fetch: Fetch) -> None:
        """A key is asked for that others want already, or after it was parked: it goes to the end of the line."""
        self.wanted.pop(fetch.key, None)
        self.wanted[fetch.key] = fetch
        self.parked.discard(fetch)
        fetch.waiters[self] = self._asked
        self._line.append((self._asked, fetch))
        self._asked += 1

    @property
    def blocked(self) -> bool:
        """Whether the first in the line is being probed, so that :meth:`advance` would do nothing."""
        index, fetch = self._line[0] if self._line else NOBODY
        return fetch is not None and fetch.state is FetchState.PROBING and fetch.waiters.get(self) == index

    @property
    def pins(self) -> bool:
        return False

    def advance(self, book: TicketBook) -> list[Fetch]:  # noqa: ARG002
        """Move on to the first key that is still being probed; returns the found ones before it, to be promoted."""
        found = []
        line = self._line
        while line:
            index, fetch = line[0]
            if fetch.waiters.get(self) == index:
                if fetch.state is FetchState.PROBING:
                    break
                if fetch.state is FetchState.FOUND:
                    found.append(fetch)
            line.popleft()
        self.scan = line[0][0] if line else self._asked
        return found

    def cut(self, book: TicketBook, at: int, cause: Status) -> Effects:  # noqa: ARG002
        """A miss is known at this place of the line: park what comes after it."""
        idle = []
        for fetch in reversed(self.wanted.values()):
            place = fetch.waiters[self]
            if place <= at:
                break
            if place != PARKED and fetch.state not in (FetchState.MISSED, FetchState.STORING):
                self.park(fetch)
                if not is_needed(fetch):
                    idle.append(fetch)
        return [], idle

    def expire(self, book: TicketBook, cause: Status) -> Effects:  # noqa: ARG002
        """Seek nothing more."""
        self.over = True
        return self.let_go()

    def let_go(self, start: int = 0) -> Effects:  # noqa: ARG002
        """Want nothing any more."""
        left = [self.drop(key) for key in list(self.wanted)]
        return [], [fetch for fetch in left if not is_needed(fetch)]

    def park(self, fetch: Fetch) -> None:
        """Leave a key alone until it is asked for again."""
        fetch.waiters[self] = PARKED
        self.parked.add(fetch)

    def rule_out(self, fetch: Fetch) -> int:
        """As the base class; what is not there for this search becomes a miss of its own."""
        index = fetch.waiters.pop(self)
        verdict = Fetch(fetch.key, self, index, fetch.refused)
        verdict.state, verdict.cause = FetchState.MISSED, fetch.cause
        self.parked.discard(fetch)
        self.wanted[fetch.key] = verdict
        return index

    def land(self, fetches: Iterable[Fetch], slots: Iterable[int]) -> list[tuple[str, OffloadKey]]:  # noqa: ARG002
        """Keys became ready; those that were parked need not be kept."""
        landed = [(self.owner, fetch.key) for fetch in fetches if fetch not in self.parked]
        for fetch in fetches:
            self.parked.discard(self.wanted.pop(fetch.key))
            self.landings[fetch.key] = self.landings.get(fetch.key, 0) + 1
        return landed

    def may_land(self, key: OffloadKey) -> bool:
        """Whether a key may be promoted, or promoted again."""
        return self.landings.get(key, 0) < (MAX_KEPT_LANDINGS if self.owner else MAX_LANDINGS)

    def used(self, keys: Iterable[OffloadKey]) -> None:
        """These were of use: should they be evicted, they are sought as at first."""
        if self.landings:
            for key in keys:
                self.landings.pop(key, None)

    def drop(self, key: OffloadKey) -> Fetch:
        """Forget that a key is wanted."""
        fetch = self.wanted.pop(key)
        self.parked.discard(fetch)
        del fetch.waiters[self]
        return fetch

    def __repr__(self) -> str:
        return f"<Search of {len(self.wanted)} keys, {len(self.parked)} parked{', over' if self.over else ''}>"


def is_needed(fetch: Fetch) -> bool:
    """Whether somebody waits for the block who has not parked it."""
    return any(index != PARKED for index in fetch.waiters.values())


def pass_over(fetches: Iterable[Fetch], still_asks: Callable[[Turn], bool]) -> list[Fetch]:
    """Whose turn it is does not ask any more, and nobody gives way: leave these alone until they are asked for again.

    Returns:
        Those that others ask for, whose turn it is now.
    """
    others = []
    for fetch in fetches:
        asking = [ticket.turn for ticket in fetch.waiters if still_asks(ticket.turn)]
        if asking:
            fetch.turn = min(asking)
            others.append(fetch)
            continue
        fetch.state = FetchState.FOUND
        for ticket in fetch.waiters:
            if isinstance(ticket, Search):
                ticket.park(fetch)
    return others
