"""Which ready blocks must not be evicted because somebody was told that they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.keeping import Turn
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.claims import Claims
from asyncoffload.sync.kept import Kept
from asyncoffload.types import RequestContext


class Promises:
    """Keeps what callers were told is ready until they have had the time to use it.

    Three kinds. What was a hit in the present step stays until the step ends, whatever else is wanted. After that,
    and from the moment it landed, a block stays for its request, which waits perhaps for others, or for room on the
    device: until the request loads it or ends, or somebody takes it who comes first: a store of the caller's, or a
    request that has waited for longer. For callers without a name it stays until the end of the next step. What was a
    hit outside of any step stays until its request loads it or ends, as long as it is not too much.

    Args:
        table: the primary.
        limit: how many blocks are kept outside of steps.

    Attributes:
        claims: what was a hit within a step, or has landed, for requests that have a name.
    """

    def __init__(self, table: BlockTable, limit: int) -> None:
        self.claims = Claims(table)
        self._table = table
        self._limit = limit
        self._step = Kept(table)
        self._lasting = Kept(table)
        self._used: set[OffloadKey] = set()
        self._stepping = False  # whether there ever was a step
        self._standing: dict[str, Kept] = {}
        self._stood = 0  # keys added to standing promises since they were last counted

    def hits(self, ctx: RequestContext) -> set[OffloadKey]:
        """Where hits go that a request is told of within the present step; to be added to directly."""
        return self.claims.asked(ctx).told if ctx.request_id else self._step.told

    def stand(self, request_id: str, keys: Sequence[OffloadKey]) -> None:
        """These were hits outside of any step."""
        kept = self._standing.get(request_id)
        if kept is None:
            kept = self._standing[request_id] = Kept(self._table)
        kept.told.update(keys)
        self._stood += len(keys)
        if self._stood > self._limit:
            self._bound()

    def landed(self, found: Iterable[tuple[str, OffloadKey]]) -> None:
        """These have landed for the requests of these names."""
        for request_id, key in found:
            if not self.claims.landed(request_id, key):
                self._lasting.told.add(key)

    def loaded(self, request_id: str, keys: Sequence[OffloadKey]) -> None:
        """These are pinned by whoever they were promised to."""
        self.claims.loaded(request_id, keys)
        if len(self._step):
            self._used.update(keys)
        self._lasting.drop(keys)
        if self._standing and (kept := self._standing.get(request_id)) is not None:
            kept.drop(keys)
            if not len(kept):
                del self._standing[request_id]

    def end_request(self, request_id: str) -> None:
        """A request has ended.

        For a caller without steps that is also when what has landed is given up: it may have been for this request.
        """
        if not self._stepping:
            self._lasting.clear()
        self.claims.end(request_id)
        kept = self._standing.pop(request_id, None)
        if kept is not None:
            kept.clear()

    def end_step(self) -> None:
        """What was a hit in this step and was not used lasts on."""
        self._stepping = True
        self._step.drop(self._used)
        self._used.clear()
        self._lasting.clear()
        self._step, self._lasting = self._lasting, self._step
        self.claims.end_step()

    def secure(self) -> None:
        """Pin what had better not be evicted by what comes next."""
        self._step.secure()
        self._lasting.secure()
        for kept in self._standing.values():
            kept.secure()
        self.claims.secure()

    def yield_to_store(self, need: int) -> None:
        """Give up what a store may take, if it lacks slots and that many could be had then."""
        mine = self.claims.slots_for_store().union(self._lasting.slots.values())
        if self._table.available < need <= self._table.available + len(mine):
            self._lasting.clear()
            self.claims.give_way_to_store(need)

    # ---- as the keeper of the planner

    def give_way(self, turn: Turn, blocks: int) -> bool:
        """Unpin blocks of requests that come later than this turn; see :class:`~asyncoffload.core.keeping.Keeper`."""
        self.claims.give_way(turn, blocks)
        return self._table.available > 0

    def keeps_for_others(self, turn: Turn) -> bool:
        """Whether something is still kept for another request than the one with this turn."""
        return self.claims.keeps_for_others(turn)

    def still_asks(self, turn: Turn) -> bool:
        """Whether the request with this turn was asked for lately."""
        return self.claims.still_asks(turn)

    def clear(self) -> None:
        """Promise nothing any more."""
        self.claims.clear()
        self._used.clear()
        for kept in (self._step, self._lasting, *self._standing.values()):
            kept.clear()
        self._standing.clear()

    def slots(self) -> set[int]:
        """The slots that are pinned for promises."""
        kinds = (self._step, self._lasting, *self._standing.values())
        return self.claims.slots().union(slot for kept in kinds for slot in kept.slots.values())

    def _bound(self) -> None:
        self._stood = sum(map(len, self._standing.values()))
        while self._stood > self._limit // 2:
            oldest = next(iter(self._standing))
            self._stood -= len(self._standing[oldest])
            self._standing.pop(oldest).clear()
