"""Where the numbers of a stack come from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.offloader.accounts import Accounts
from asyncoffload.offloader.stats import OffloaderStats
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.workers.worker import OffloadingWorker

T = TypeVar("T")

_log = logging.getLogger(__name__)


class StatsReader:
    """Asks every part of a stack for its numbers."""

    def __init__(
        self,
        region: HostRegion,
        manager: TieringOffloadingManager,
        tiers: Sequence[SecondaryTierManager],
        worker: OffloadingWorker,
        accounts: Accounts,
    ) -> None:
        self._region = region
        self._manager = manager
        self._tiers = tuple(tiers)
        self._worker = worker
        self._accounts = accounts
        self._complaints = Complaints(_log, time.monotonic)

    def read(self) -> OffloaderStats:
        """The numbers now; any thread. A tier that raises has none of its own this time, and there is a complaint."""
        counts, accounts = self._manager.tier_counts(), self._accounts
        nothing: Mapping[str, float] = {}
        own = {tier.tier_type: self._asked(tier, tier.stats, nothing) for tier in self._tiers}
        pools = {tier.tier_type: self._asked(tier, tier.pool_stats, None) for tier in self._tiers}
        handlers = self._worker.handlers
        return OffloaderStats(
            primary=self._manager.stats(),
            tiers={name: {**counts[name], **figures} for name, figures in own.items()},
            slot_bytes=self._region.slot_bytes,
            verbs={verb: account.snapshot() for verb, account in accounts.verbs.items()},
            blocks=accounts.blocks.snapshot(),
            copies={direction: account.snapshot() for direction, account in accounts.copies.items()},
            engines={name: count for handler in handlers for name, count in handler.engines().items()},
            tier_calls=self._manager.call_stats(),
            shed=self._manager.shed_counts(),
            pools={name: pool for name, pool in pools.items() if pool is not None},
        )

    def _asked(self, tier: SecondaryTierManager, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except Exception as error:  # whatever a tier raises is a failure of that tier, not of the stack above it
            self._complaints.add(tier.tier_type, f"tier {tier.tier_type} does not tell its numbers: {error!r}")
            return otherwise
