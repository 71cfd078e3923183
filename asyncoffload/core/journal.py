"""What happened to which block, as far back as there is room: so that a miss can be explained.

Writing must cost next to nothing, since every block is written down three or four times in its life; reading is rare.
So a call is one entry that names all of its blocks, and who asks about a block looks through them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.tickets import PRIMARY
from asyncoffload.core.write import Write
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Fate, Status

DEFAULT_JOURNAL_BLOCKS = 65_536

EVENTS_OF_A_BLOCK = 4
"""Stored, copied to a tier, evicted, and one to spare."""

TROUBLE = {
    Status.MISSING: Fate.MISSING,
    Status.CORRUPT: Fate.CORRUPT,
    Status.TIMED_OUT: Fate.TIMED_OUT,
    Status.SHED: Fate.SHED,
    Status.FAILED: Fate.FAILED,
    Status.CANCELLED: Fate.DROPPED,
}
"""What happened to a block that did not arrive."""


class Batch(NamedTuple):
    """The same thing that happened to some blocks at the same time.

    Attributes:
        when: seconds since the epoch; None for what was not dated yet.
        tier: the index of the tier, or ``PRIMARY``.
        what: what happened.
        why: what it ran into.
        call: what was being done.
        keys: the blocks.
    """

    when: float | None
    tier: int
    what: Fate
    why: str
    call: str
    keys: tuple[OffloadKey, ...]


class Journal:
    """Events of blocks, the newest of them; when it is full, the oldest are forgotten, call by call.

    It knows no clock: what was added since the last :meth:`date` gets the time that is given there. One thread at a
    time writes; any thread may read.

    Args:
        max_blocks: how many blocks' lives are remembered, of :data:`EVENTS_OF_A_BLOCK` events each; 0 for none at all.

    Attributes:
        forgotten: the time of the newest event that had to be forgotten; None where everything is still known.
    """

    def __init__(self, max_blocks: int = DEFAULT_JOURNAL_BLOCKS) -> None:
        self.forgotten: float | None = None
        self._capacity = max_blocks * EVENTS_OF_A_BLOCK
        self._count = 0
        self._batches: deque[Batch] = deque()
        self._fresh: list[Batch] = []

    def __len__(self) -> int:
        return self._count

    @property
    def is_on(self) -> bool:
        """Whether anything is remembered."""
        return self._capacity > 0

    @property
    def is_dated(self) -> bool:
        """Whether nothing waits for :meth:`date`."""
        return not self._fresh

    def add(
        self, what: Fate, keys: Sequence[OffloadKey], *, tier: int = PRIMARY, why: str = "", call: str = ""
    ) -> None:
        """The same happened to these blocks."""
        if self._capacity and keys:
            if len(keys) > self._capacity:
                keys = keys[-self._capacity :]
            self._fresh.append(Batch(None, tier, what, why, call, tuple(keys)))

    def date(self, now: float) -> None:
        """What was added since the last call happened now, in seconds since the epoch."""
        fresh, self._fresh = self._fresh, []
        for batch in fresh:
            self._batches.append(Batch(now, *batch[1:]))
            self._count += len(batch.keys)
        while self._count > self._capacity:
            oldest = self._batches.popleft()
            self._count -= len(oldest.keys)
            self.forgotten = oldest.when

    def batches(self) -> list[Batch]:
        """Everything that is remembered, oldest first. Any thread."""
        return [*self._batches.copy(), *self._fresh]

    # ---- how the planner's facts are told

    def evicted(self, write: Write) -> None:
        """Blocks had to make room in the primary."""
        if not write.lost:
            self.add(Fate.EVICTED, write.evicted)
        elif self._capacity:
            kept = len(write.evicted) - write.lost
            self.add(Fate.EVICTED, write.evicted[:kept])
            self.add(Fate.LOST, write.evicted[kept:])

    def settled(self, op: Op, statuses: Sequence[Status]) -> None:
        """A tier has answered."""
        if not self._capacity or not statuses:
            return
        if not op.reasons and statuses.count(statuses[0]) == len(statuses):
            self._answered(op, statuses[0], "", op.keys)
            return
        answers: dict[tuple[Status, str], list[OffloadKey]] = {}
        for key, status in zip(op.keys, statuses, strict=True):
            answers.setdefault((status, op.reasons.get(key, "")), []).append(key)
        for (status, why), keys in answers.items():
            self._answered(op, status, why, keys)

    def _answered(self, op: Op, status: Status, why: str, keys: Sequence[OffloadKey]) -> None:
        if status is Status.DONE:
            if op.kind is not OpKind.PROBE:
                self.add(Fate.PROMOTED if op.kind is OpKind.PROMOTE else Fate.STORED, keys, tier=op.tier)
        # To ask for a block in vain is what needs to be explained, and what nobody waited for is no trouble.
        elif not (op.kind is OpKind.PROBE and status is Status.MISSING) and not (
            op.kind is not OpKind.CASCADE and status is Status.CANCELLED
        ):
            self.add(TROUBLE[status], keys, tier=op.tier, why=why, call=op.kind.value)


def about(key: OffloadKey, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Those of the batches that are about a block: some 20 ns for each block in them."""
    return (batch for batch in batches if key in batch.keys)


def in_pieces(batches: Sequence[Batch], blocks: int) -> Iterator[Sequence[Batch]]:
    """The batches, so many blocks at a time, or one batch where that alone has more."""
    first, count = 0, 0
    for place, batch in enumerate(batches):
        if count and count + len(batch.keys) > blocks:
            yield batches[first:place]
            first, count = place, 0
        count += len(batch.keys)
    if first < len(batches):
        yield batches[first:]
