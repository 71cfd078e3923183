"""Which ready blocks must not be evicted because somebody was told that they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncoffload.core.block_table import BlockTable
from asyncoffload.keys import OffloadKey


class Kept:
    """Some blocks of the table that stay where they are.

    Keeping costs a set entry. They are pinned only by :meth:`secure`, before something that may evict, so that a step
    in which nothing is evicted pays for no pin.

    Attributes:
        told: blocks that are kept and not pinned yet; to be added to directly.
        slots: those that are pinned, and their slots.
    """

    __slots__ = ("_table", "slots", "told")

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self.told: set[OffloadKey] = set()
        self.slots: dict[OffloadKey, int] = {}

    def secure(self) -> None:
        """Pin what is not pinned yet."""
        if self.told:
            ready = self._table.ready
            keys = [key for key in self.told if key in ready and key not in self.slots]
            self.told.clear()
            if keys:
                self.slots.update(zip(keys, self._table.pin(keys), strict=True))

    def drop(self, keys: Iterable[OffloadKey]) -> None:
        """Keep these no longer."""
        if self.told:
            self.told.difference_update(keys)
        if self.slots:
            freed = [slot for slot in (self.slots.pop(key, None) for key in keys) if slot is not None]
            if freed:
                self._table.unpin(freed)

    def clear(self) -> None:
        """Keep nothing any more."""
        self.told.clear()
        if self.slots:
            self._table.unpin(list(self.slots.values()))
            self.slots.clear()

    def __len__(self) -> int:
        return len(self.told) + len(self.slots)


class Promises:
    """Keeps what callers were told is ready until they have had the time to use it.

    Three kinds. What was a hit in the present step stays until the step ends, whatever else is wanted. After that,
    and from the moment it landed, a block stays until the end of the next step against other blocks that are to be
    promoted: else the first blocks of a long prefix make room for its last ones. A store of the caller's may take
    those. What was a hit outside of any step stays until its request loads it or ends, as long as it is not too much.

    Args:
        table: the primary.
        limit: how many blocks are kept outside of steps.

    Attributes:
        hits: the hits of this step, to be added to directly.
    """

    def __init__(self, table: BlockTable, limit: int) -> None:
        self._table = table
        self._limit = limit
        self._step = Kept(table)
        self._lasting = Kept(table)
        self._used: set[OffloadKey] = set()
        self._stepping = False  # whether there ever was a step
        self._standing: dict[str, Kept] = {}
        self._stood = 0  # keys added to standing promises since they were last counted
        self.hits = self._step.told

    def stand(self, request_id: str, keys: Sequence[OffloadKey]) -> None:
        """These were hits outside of any step."""
        kept = self._standing.get(request_id)
        if kept is None:
            kept = self._standing[request_id] = Kept(self._table)
        kept.told.update(keys)
        self._stood += len(keys)
        if self._stood > self._limit:
            self._bound()

    def last(self, keys: Sequence[OffloadKey]) -> None:
        """These have landed for somebody who waits for them."""
        self._lasting.told.update(keys)

    def loaded(self, request_id: str, keys: Sequence[OffloadKey]) -> None:
        """These are pinned by whoever they were promised to."""
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
        kept = self._standing.pop(request_id, None)
        if kept is not None:
            kept.clear()

    def end_step(self) -> None:
        """What was a hit in this step and was not used lasts until the end of the next one."""
        self._stepping = True
        self._step.drop(self._used)
        self._used.clear()
        self._lasting.clear()
        self._step, self._lasting = self._lasting, self._step
        self.hits = self._step.told

    def secure(self, *, lasting: bool = True) -> None:
        """Pin what must not be evicted by what comes next."""
        self._step.secure()
        for kept in self._standing.values():
            kept.secure()
        if lasting:
            self._lasting.secure()

    def yield_to_store(self, need: int) -> bool:
        """Give up what a store may take, if so many slots could be had then; returns whether they could."""
        if not self._lasting.slots or need > self._table.available + len(self._lasting.slots):
            return False
        self._lasting.clear()
        return True

    def clear(self) -> None:
        """Promise nothing any more."""
        self._used.clear()
        for kept in (self._step, self._lasting, *self._standing.values()):
            kept.clear()
        self._standing.clear()

    def slots(self) -> set[int]:
        """The slots that are pinned for promises."""
        return {slot for kept in (self._step, self._lasting, *self._standing.values()) for slot in kept.slots.values()}

    def _bound(self) -> None:
        self._stood = sum(map(len, self._standing.values()))
        while self._stood > self._limit // 2:
            oldest = next(iter(self._standing))
            self._stood -= len(self._standing[oldest])
            self._standing.pop(oldest).clear()
