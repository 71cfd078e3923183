"""One op at a tier: timed, counted, and settled once, at its end or before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from asyncoffload.core.ops import Op, OpKind
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.call_counts import CallCounts
from asyncoffload.managers.pace import TierPace
from asyncoffload.types import Status


class Settle(Protocol):
    """Takes what became of an op, one status per key, and whether its slots stay in use all the same."""

    def __call__(self, op: Op, statuses: Sequence[Status], /, *, abandoned: bool) -> None: ...


class TierCall:
    """A call of a tier that is under way.

    Args:
        op: what the tier was asked.
        counts: counts it.
        pace: learns from it; only of promotions.
        bytes_of: bytes of some blocks.
        clock: seconds.
        settle: called once.
    """

    __slots__ = ("_began", "_bytes_of", "_clock", "_counts", "_op", "_pace", "_settle")

    def __init__(
        self,
        op: Op,
        counts: CallCounts,
        pace: TierPace,
        bytes_of: Callable[[Sequence[OffloadKey]], int],
        clock: Callable[[], float],
        settle: Settle,
    ) -> None:
        self._op = op
        self._counts = counts
        self._pace = pace if op.kind is OpKind.PROMOTE else None
        self._bytes_of = bytes_of
        self._clock = clock
        self._settle: Settle | None = settle
        self._began = clock()
        counts.began()
        if self._pace is not None:
            self._pace.began(self._began)

    @property
    def settled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._settle is None

    def answered(self, statuses: Sequence[Status], *, abandoned: bool = False) -> None:
        """The tier said what became of the keys; the first answer counts."""
        if self._settle is not None:
            moved = 0
            if self._op.kind is not OpKind.PROBE:
                pairs = zip(self._op.keys, statuses, strict=True)
                moved = self._bytes_of([key for key, status in pairs if status is Status.DONE])
            self._counts.answered(statuses, moved)
            self._finish(statuses, moved, abandoned=abandoned)

    def failed(self, trouble: Status) -> None:
        """The tier said nothing that can be used."""
        if self._settle is not None:
            n_keys = len(self._op.keys)
            self._counts.failed(trouble, n_keys)
            self._finish([trouble] * n_keys, 0)

    def ended(self) -> None:
        """The tier's coroutine has ended; what was not answered until now never will be."""
        self._counts.ended(self._clock() - self._began)
        if self._settle is not None:
            self._finish([Status.CANCELLED] * len(self._op.keys), 0)

    def _finish(self, statuses: Sequence[Status], moved: int, *, abandoned: bool = False) -> None:
        assert self._settle is not None
        settle, self._settle = self._settle, None
        if self._pace is not None:
            self._pace.ended(moved, self._clock())
        settle(self._op, statuses, abandoned=abandoned)
