"""Asking everybody who may know what became of a block."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.journal import Batch, Journal, about, in_pieces
from asyncoffload.core.tickets import PRIMARY
from asyncoffload.core.verdict import Evidence, merged, verdict
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.managers.tier_names import tiers_by_name
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    Explanation,
    Fate,
    Findings,
    HistoryEntry,
    RequestContext,
)

PATIENCE = 10.0
"""Seconds that a tier has to answer where the request sets no deadline: a disk that hangs is an answer, too."""

PRIMARY_NAME = CPULoadStoreSpec.medium()

_PIECE_BLOCKS = 16_384  # some 0.3 ms of the loop


class Explainer:
    """Keeps the journal of a manager, and answers where a block is and why it is not.

    Args:
        table: the primary.
        journal: what happened to its blocks.
        clock: seconds; the clock of deadlines.
        now: seconds since the epoch; the clock of the journal.

    Attributes:
        tiers: those behind the primary.
        names: their names, by the indices that the journal uses.
    """

    def __init__(
        self, table: BlockTable, journal: Journal, *, clock: Callable[[], float], now: Callable[[], float] = time.time
    ) -> None:
        self.tiers: Sequence[SecondaryTierManager] = ()
        self.names: Sequence[str] = ()
        self._table = table
        self._journal = journal
        self._clock = clock
        self._now = now

    def date(self) -> None:
        """What was written down since the last call happened now; by whoever has the primary."""
        if not self._journal.is_dated:
            self._journal.date(self._now())

    def question(
        self, key: OffloadKey, ctx: RequestContext = ANONYMOUS
    ) -> Callable[[], Coroutine[None, None, Explanation]]:
        """Ask about a block, by whoever has the primary; the answer comes from a coroutine on the loop of the tiers.

        It waits for tiers until the deadline, by default for :data:`PATIENCE` seconds. Cancellation: leaves at once.

        Raises:
            InvalidArgument: the key is malformed, or the context names a tier that does not exist.
        """
        [key] = checked_keys([key])
        table, journal = self._table, self._journal
        state = "ready" if key in table.ready else "writing" if key in table.writing else ""
        tiers = tiers_by_name(self.tiers, self.names, ctx)
        patience = PATIENCE if ctx.deadline is None else max(0.0, ctx.deadline - self._clock())
        return partial(self._answer, key, state, journal.batches(), journal.forgotten, tiers, patience)

    async def _answer(
        self,
        key: OffloadKey,
        state: str,
        batches: Sequence[Batch],
        forgotten: float | None,
        tiers: Mapping[str, SecondaryTierManager],
        patience: float,
    ) -> Explanation:
        findings = dict(await asyncio.gather(*(_ask(name, tier, key, patience) for name, tier in tiers.items())))
        own = [entry async for entry in self._history(key, batches)]
        history = merged(own, *(one.history for one in findings.values() if one is not None))
        holders = {name: one.details or "there" for name, one in findings.items() if one is not None and one.holds}
        evidence = Evidence(
            now=self._now(),
            primary=PRIMARY_NAME,
            state=state,
            tiers=list(tiers),
            holders=list(holders),
            silent=[name for name, one in findings.items() if one is None or one.holds is None],
            history=history,
            elsewhere={name: one.elsewhere for name, one in findings.items() if one is not None and one.elsewhere},
            journal=self._journal.is_on,
            forgotten=forgotten,
        )
        where = {PRIMARY_NAME: state, **holders} if state else holders
        return Explanation(key, where, history, evidence.elsewhere, verdict(evidence))

    async def _history(self, key: OffloadKey, batches: Sequence[Batch]) -> AsyncIterator[HistoryEntry]:
        for piece in in_pieces(batches, _PIECE_BLOCKS):
            for batch in about(key, piece):
                yield self._entry(batch)
            await asyncio.sleep(0)

    def _entry(self, batch: Batch) -> HistoryEntry:
        when = self._now() if batch.when is None else batch.when
        if batch.tier == PRIMARY:
            return HistoryEntry(when, PRIMARY_NAME, batch.what, batch.why, batch.call)
        if batch.what is Fate.PROMOTED:
            return HistoryEntry(when, PRIMARY_NAME, batch.what, f"from {self.names[batch.tier]}")
        return HistoryEntry(when, self.names[batch.tier], batch.what, batch.why, batch.call)


async def _ask(name: str, tier: SecondaryTierManager, key: OffloadKey, patience: float) -> tuple[str, Findings | None]:
    """What a tier says; None where it does not answer, or not in time."""
    try:
        async with asyncio.timeout(patience):
            return name, await tier.explain(key)
    except Exception:  # whatever a tier raises is a failure of that tier; that it does not answer is told
        return name, None
