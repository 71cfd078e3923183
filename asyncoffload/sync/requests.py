"""Which request searches for what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from asyncoffload.core.searches import Search
from asyncoffload.core.tiering import EVERY_TIER, TieringPlanner
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult, RequestContext

_MISS = LookupResult.MISS


class Requests:
    """One search per request, from its first key that is not ready until the request ends.

    Calls without a name share one search, which nobody ends: there, a miss is told once, and asked about again.

    Args:
        planner: has the searches.
        names: the tiers' names, by index.
        clock: seconds; the clock of the deadlines.
    """

    def __init__(self, planner: TieringPlanner, names: Sequence[str], clock: Callable[[], float]) -> None:
        self._planner = planner
        self._names = names
        self._clock = clock
        self._searches: dict[str, Search] = {}
        self._told: list[OffloadKey] = []

    def seek(self, key: OffloadKey, ctx: RequestContext) -> LookupResult:
        """Ask for one key that is not ready, see :meth:`TieringPlanner.seek`; past the deadline that is a miss.

        Raises:
            InvalidArgument: the context names a tier that does not exist.
        """
        search = self._searches.get(ctx.request_id)
        if search is None:
            search = self._searches[ctx.request_id] = self._planner.search(
                ctx.priority, tiers=self._allowed(ctx), deadline=ctx.deadline
            )
        if search.deadline is not None and not search.over and self._clock() >= search.deadline:
            self._planner.expire(search)
        answer = self._planner.seek(search, key)
        if answer is _MISS and not ctx.request_id:
            self._told.append(key)
        return answer

    def loaded(self, request_id: str, keys: Iterable[OffloadKey]) -> None:
        """A request loads these blocks."""
        search = self._searches.get(request_id)
        if search is not None:
            search.used(keys)

    def end(self, request_id: str) -> bool:
        """A request has ended; returns whether it searched."""
        search = self._searches.pop(request_id, None)
        if search is None:
            return False
        self._planner.close(search)
        return True

    def end_all(self) -> None:
        """All requests have ended."""
        for request_id in list(self._searches):
            self.end(request_id)

    def end_step(self) -> None:
        """What was told to calls without a name is forgotten."""
        if self._told:
            nameless = self._searches.get("")
            if nameless is not None:
                for key in self._told:
                    self._planner.forgive(nameless, key)
            self._told.clear()

    def _allowed(self, ctx: RequestContext) -> int:
        if ctx.tiers is None:
            return EVERY_TIER
        if unknown := ctx.tiers.difference(self._names):
            raise InvalidArgument(f"there is no tier {', '.join(sorted(unknown))}; there are {', '.join(self._names)}")
        return sum(1 << self._names.index(name) for name in ctx.tiers)
