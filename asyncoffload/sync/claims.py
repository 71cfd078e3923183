"""What waiting requests have found, and who gives way where it is too much for the primary."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import count

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.keeping import Turn
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.kept import Kept
from asyncoffload.types import RequestContext

LAST = sys.maxsize
"""The place of calls without a name."""


class Claim(Kept):
    """What one request has found and not used yet.

    Attributes:
        turn: its request's place among all that wait.
        step: the step in which it was last asked for.
    """

    __slots__ = ("step", "turn")

    def __init__(self, table: BlockTable, turn: Turn) -> None:
        super().__init__(table)
        self.turn = turn
        self.step = -1


class Claims:
    """One claim per request, from its first lookup in a step, or its first block that landed, until it ends.

    Requests use their blocks in the order in which they came, as far as a scheduler goes by that. So where not all
    have room, those who came first keep theirs, and the last ones give way. In any other order requests would evict
    each other's blocks, each of them unused, for as long as they wait. A scheduler that goes by another order shows it
    by whom it asks for: who was not asked for lately gives way to who was.

    Args:
        table: the primary.
    """

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._claims: dict[str, Claim] = {}
        self._places = count()
        self._step = 0

    def of(self, ctx: RequestContext) -> Claim:
        """The claim of a request that has a name."""
        claim = self._claims.get(ctx.request_id)
        if claim is None:
            claim = self._claims[ctx.request_id] = Claim(self._table, (int(ctx.priority), next(self._places)))
            claim.step = self._step - 1
        return claim

    def seen(self, request_id: str) -> None:
        """A request was asked for, perhaps outside of any step."""
        claim = self._claims.get(request_id)
        if claim is not None:
            claim.step = max(claim.step, self._step - 1)

    def asked(self, ctx: RequestContext) -> Claim:
        """The same for a lookup within the present step: until that ends, nobody takes anything of the claim."""
        claim = self.of(ctx)
        claim.step = self._step
        return claim

    def landed(self, request_id: str, key: OffloadKey) -> bool:
        """A block has landed for a request; returns whether there is such a request."""
        claim = self._claims.get(request_id)
        if claim is not None:
            claim.told.add(key)
        return claim is not None

    def loaded(self, request_id: str, keys: Sequence[OffloadKey]) -> None:
        """A request uses these."""
        claim = self._claims.get(request_id)
        if claim is not None:
            claim.drop(keys)

    def end(self, request_id: str) -> None:
        """A request has ended."""
        claim = self._claims.pop(request_id, None)
        if claim is not None:
            claim.clear()

    def end_step(self) -> None:
        """What was a hit in this step may be taken from now on by who comes before."""
        self._step += 1

    def secure(self) -> None:
        """Pin all of it."""
        for claim in self._claims.values():
            claim.secure()

    def give_way(self, turn: Turn, blocks: int) -> None:
        """Let those who come after this turn give up blocks, the last one first, until so many slots can be had."""
        still_asks = self.still_asks(turn)

        def lateness(claim: Claim) -> tuple[bool, Turn]:
            return still_asks and not self._asked_lately(claim), claim.turn

        later = [claim for claim in self._free_to_take() if lateness(claim) > (False, turn)]
        self._take(sorted(later, key=lateness, reverse=True), blocks)

    def give_way_to_store(self, blocks: int) -> None:
        """Let requests give up blocks, the last one first, until so many slots can be had."""
        self._take(sorted(self._free_to_take(), key=lambda claim: claim.turn, reverse=True), blocks)

    def slots_for_store(self) -> set[int]:
        """The slots that may be taken by :meth:`give_way_to_store`."""
        return {slot for claim in self._free_to_take() for slot in claim.slots.values()}

    def keeps_for_others(self, turn: Turn) -> bool:
        """Whether something is pinned for another turn than this one."""
        return any(claim.slots and claim.turn != turn for claim in self._claims.values())

    def still_asks(self, turn: Turn) -> bool:
        """Whether this request was asked for lately; one without a name always was."""
        return turn[1] == LAST or any(
            claim.turn == turn and self._asked_lately(claim) for claim in self._claims.values()
        )

    def clear(self) -> None:
        """Keep nothing; who came first still does."""
        for claim in self._claims.values():
            claim.clear()

    def slots(self) -> set[int]:
        """All slots that are pinned."""
        return {slot for claim in self._claims.values() for slot in claim.slots.values()}

    def _asked_lately(self, claim: Claim) -> bool:
        return claim.step >= self._step - 1  # between two steps that is the one before

    def _free_to_take(self) -> list[Claim]:
        return [claim for claim in self._claims.values() if claim.slots and claim.step != self._step]

    def _take(self, claims: Iterable[Claim], blocks: int) -> None:
        table = self._table
        for claim in claims:
            while claim.slots and table.available < blocks:
                claim.give_up(blocks - table.available)
