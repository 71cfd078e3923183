"""What the tier knows of its blocks, and what it tells others about them."""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from asyncoffload.core.journal import TROUBLE, Journal, about
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.tiers.fs.index import BlockIndex, Look
from asyncoffload.types import Fate, HistoryEntry, KeyOutcome, Status

logger = logging.getLogger("asyncoffload.tiers.fs")

TROUBLES = 2_048
"""Blocks of which it is remembered why they were not moved, for :meth:`Ledger.history`."""

_TOLD = {Status.SHED, Status.CORRUPT, Status.FAILED, Status.TIMED_OUT}


class Ledger:
    """Enters what became of each block: index, events, counters, and a word in the log about trouble.

    Attributes:
        index: the blocks known to be there.
        events: those that appeared or left.
        counts: keys by direction and status, such as ``load_corrupt``.
        complaints: where trouble is reported.
    """

    def __init__(self, index: BlockIndex, events: EventLog, clock: Callable[[], float]) -> None:
        self.index = index
        self.events = events
        self.counts: Counter[str] = Counter()
        self.complaints = Complaints(logger, clock)
        self._tier = events.medium
        self._journal = Journal(TROUBLES)

    def stored(self, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]) -> bool:
        """Enter a store; False when the directory turned out to be gone, so that nothing known of it holds."""
        by_status = self._count("store", keys, outcomes)
        self.events.appeared(self.index.add(by_status[Status.DONE]))
        if any(isinstance(outcome.error, OSError) and outcome.error.errno == errno.ENOENT for outcome in outcomes):
            self.events.removed(self.index.clear())
            return False
        return True

    def loaded(self, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]) -> None:
        """Enter a load."""
        by_status = self._count("load", keys, outcomes)
        self.index.add(by_status[Status.DONE])
        bad = by_status[Status.CORRUPT]
        self.index.remove(bad)
        self.events.removed([*bad, *self.index.remove(by_status[Status.MISSING])])

    def evicted(self, keys: Sequence[OffloadKey]) -> None:
        """Enter blocks that were removed to make room; the index need not have known them."""
        self.index.remove(keys)
        self.events.removed(keys)

    def missed(self, look: Look, keys: Iterable[OffloadKey]) -> None:
        """Enter what a look at the disk did not find; it matters only where it was thought to be."""
        self.events.removed(look.missed(keys))

    def refused(self, direction: str, outcomes: Mapping[OffloadKey, KeyOutcome]) -> None:
        """Write down why blocks were not moved."""
        causes: dict[tuple[Fate, str], list[OffloadKey]] = {}
        for key, outcome in outcomes.items():
            if outcome.status in _TOLD:
                why = outcome.why or str(outcome.error or "")
                causes.setdefault((TROUBLE[outcome.status], why), []).append(key)
        for (what, why), keys in causes.items():
            self._journal.add(what, keys, why=why, call=direction)
        self._journal.date(time.time())

    def history(self, key: OffloadKey) -> list[HistoryEntry]:
        """Why this block was not moved, oldest first. Any thread."""
        return [
            HistoryEntry(batch.when or time.time(), self._tier, batch.what, batch.why, batch.call)
            for batch in about(key, self._journal.batches())
        ]

    def _count(
        self, direction: str, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]
    ) -> dict[Status, list[OffloadKey]]:
        by_status: dict[Status, list[OffloadKey]] = {status: [] for status in Status}
        for key, outcome in zip(keys, outcomes, strict=True):
            by_status[outcome.status].append(key)
            if outcome.error is not None:
                self.complaints.add(f"{direction} {outcome.status.value}", outcome.error)
        if len(by_status[Status.DONE]) < len(keys):
            self.refused(direction, dict(zip(keys, outcomes, strict=True)))
        self.counts.update({f"{direction}_{status.value}": len(some) for status, some in by_status.items() if some})
        return by_status
