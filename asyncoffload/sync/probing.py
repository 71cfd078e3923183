"""Lookups that never wait: what is known is answered, what is not known is asked for behind the caller's back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.aio.mailbox import Mailbox
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.answers import FRESH_SECONDS, Answers
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.types import DONE, JobResult, LookupResult, RequestContext, Status

PROBE_SECONDS = 5.0
"""How long RETRY is answered. A tier that has not answered by then counts as not having the block: an engine whose
request would wait for a hanging disk computes it instead."""

SAYS_NOTHING_OF_THE_BLOCK = frozenset({Status.SHED, Status.TIMED_OUT})

_log = logging.getLogger("asyncoffload.sync")


class Probes:
    """Answers lookups for one tier, from any thread.

    Keys that only the tier can tell about are collected until the loop's next turn, then asked for in one call.
    """

    def __init__(self, tier: SecondaryTierManager, loop: LoopThread, clock: Callable[[], float]) -> None:
        self._tier = tier
        self._clock = clock
        self._answers = Answers()
        self._asked: dict[OffloadKey, float] = {}
        self._mail: Mailbox[OffloadKey] = Mailbox(lambda keys: loop.spawn(self._ask(keys)), loop.loop)
        self._complaints = Complaints(_log, clock)

    def __len__(self) -> int:
        return len(self._asked)

    def lookup(self, key: OffloadKey) -> LookupResult:
        """HIT, MISS, or RETRY while the tier is being asked; any thread, at once."""
        # Few frames, since a scheduler asks for thousands of keys each step.
        answers = self._answers
        if answers.barred and key in answers.barred and self._is_barred(key):
            return LookupResult.MISS
        given = answers.given.get(key)
        if given is not None and self._clock() - given[1] < FRESH_SECONDS:
            return given[0]
        try:
            if self._tier.hint(key):
                return LookupResult.HIT
        except Exception as error:  # a tier whose hint fails does not know
            self._complaints.add("hint", f"tier {self._tier.tier_type}: hint: {error!r}")
        return self._stale_or_retry(key)

    def _stale_or_retry(self, key: OffloadKey) -> LookupResult:
        """Have the tier asked, and say what can be said meanwhile."""
        now = self._clock()
        answer = self._answers.stale(key, now)
        since = self._asked.get(key)
        if since is None:  # two threads may both find that; the tier is then asked twice, which does no harm
            try:
                self._asked[key] = now
                self._mail.post(key)
            except BaseException:  # KeyboardInterrupt: the next call asks
                self._asked.pop(key, None)
                raise
        elif answer is None and now - since >= PROBE_SECONDS:
            return LookupResult.MISS
        return LookupResult.RETRY if answer is None else answer

    # ---- on the loop's thread

    def loaded(self, result: JobResult) -> None:
        """A load has ended: what failed is a MISS until it is stored; what was refused or late is one for a moment."""
        refused, failed = [], []
        for key, outcome in zip(result.keys, result.outcomes, strict=True):
            if outcome.status in SAYS_NOTHING_OF_THE_BLOCK:
                refused.append(key)
            elif outcome.status is not Status.DONE and outcome.status is not Status.CANCELLED:
                failed.append(key)
        self._answers.bar(failed)
        if refused:
            self._answers.bar(refused, self._clock() + FRESH_SECONDS)

    def stored(self, result: JobResult) -> None:
        """A store has ended: what arrived is a HIT."""
        outcomes = zip(result.keys, result.outcomes, strict=True)
        self._answers.stored((key for key, outcome in outcomes if outcome is DONE or outcome.ok), self._clock())

    def forget_stale(self) -> None:
        """Let go of answers that nobody has asked for lately."""
        self._answers.forget_stale(self._clock())

    async def _ask(self, keys: Sequence[OffloadKey]) -> None:
        try:
            answers = await self._tier.lookup(keys, RequestContext())
            if len(answers) != len(keys):
                raise ValueError(f"answered for {len(answers)} of {len(keys)} keys")
        except Exception as error:  # a tier that cannot say is a tier that does not have it
            self._complaints.add("lookup", f"tier {self._tier.tier_type}: lookup: {error!r}")
            answers = [LookupResult.MISS] * len(keys)
        now = self._clock()
        hits = [key for key, answer in zip(keys, answers, strict=True) if answer is LookupResult.HIT]
        self._answers.remember(set(keys).difference(hits), LookupResult.MISS, now)
        self._answers.remember(hits, LookupResult.HIT, now)
        for key in keys:
            self._asked.pop(key, None)

    def _is_barred(self, key: OffloadKey) -> bool:
        until = self._answers.barred.get(key, 0.0)
        return until == inf or self._clock() < until
