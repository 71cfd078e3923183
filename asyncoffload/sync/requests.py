"""Which request searches for what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from asyncoffload.core.searches import Search
from asyncoffload.core.tiering import TieringPlanner
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.tier_names import allowed_tiers
from asyncoffload.sync.claims import LAST, Claims
from asyncoffload.types import LookupResult, RequestContext

_MISS = LookupResult.MISS


class Requests:
    """One search per request, from its first key that is not ready until the request ends.

    Calls without a name share one search, which nobody ends: there, a miss is told once, and asked about again.

    Args:
        planner: has the searches.
        claims: what the requests have found, and their order.
        names: the tiers' names, by index.
        clock: seconds; the clock of the deadlines.
    """

    def __init__(
        self, planner: TieringPlanner, claims: Claims, names: Sequence[str], clock: Callable[[], float]
    ) -> None:
        self._planner = planner
        self._claims = claims
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
                ctx.priority,
                tiers=allowed_tiers(self._names, ctx),
                deadline=ctx.deadline,
                owner=ctx.request_id,
                place=self._claims.of(ctx).turn[1] if ctx.request_id else LAST,
            )
        if search.deadline is not None and not search.over and self._clock() >= search.deadline:
            self._planner.expire(search)
        answer = self._planner.seek(search, key)
        if answer is _MISS and not ctx.request_id:
            self._told.append(key)
        return answer

    def asks(self, ctx: RequestContext) -> None:
        """A request asks anew, perhaps with another deadline."""
        search = self._searches.get(ctx.request_id)
        if search is not None:
            search.deadline = ctx.deadline
            self._claims.seen(ctx.request_id)

    def loaded(self, request_id: str, keys: Iterable[OffloadKey]) -> None:
        """A request loads these blocks."""
        search = self._searches.get(request_id)
        if search is not None:
            search.used(keys)

    def end(self, request_id: str) -> None:
        """A request has ended."""
        search = self._searches.pop(request_id, None)
        if search is not None:
            self._planner.close(search)

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
