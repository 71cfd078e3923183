"""What the tier knows of its blocks, and what it tells others about them."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.types import KeyOutcome, Status

logger = logging.getLogger("asyncoffload.tiers.fs")


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

    def _count(
        self, direction: str, keys: Sequence[OffloadKey], outcomes: Sequence[KeyOutcome]
    ) -> dict[Status, list[OffloadKey]]:
        by_status: dict[Status, list[OffloadKey]] = {status: [] for status in Status}
        for key, outcome in zip(keys, outcomes, strict=True):
            by_status[outcome.status].append(key)
            if outcome.error is not None:
                self.complaints.add(f"{direction} {outcome.status.value}", outcome.error)
        self.counts.update({f"{direction}_{status.value}": len(some) for status, some in by_status.items() if some})
        return by_status
