"""What a tier answered lately, for callers who ask again every step."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult

FRESH_SECONDS = 1.0
"""How long an answer is believed, as in the tiers' own indices: neighbours write, and evict, too."""

STALE_SECONDS = 2.0
"""How long it is given while the tier is asked again: who asks every step then never hears RETRY a second time."""

MAX_ANSWERS = 65_536
"""Answers, and as many keys with failed loads, that are remembered; the oldest go first."""


class Answers:
    """HIT or MISS by key, and the keys whose load failed. Time is an argument, in seconds of one monotonic clock.

    One thread writes, any thread reads.

    Attributes:
        given: the last answer by key, and when it was given.
        barred: the keys that are a MISS whatever the tier says of them, and until when.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS) -> None:
        self.given: dict[OffloadKey, tuple[LookupResult, float]] = {}
        self.barred: dict[OffloadKey, float] = {}
        self._max_answers = max_answers

    def __len__(self) -> int:
        return len(self.given)

    def stale(self, key: OffloadKey, now: float) -> LookupResult | None:
        """The answer that may be given while the tier is asked again; None where only the tier can tell."""
        answer, at = self.given.get(key, (None, now))
        return answer if now - at < STALE_SECONDS else None

    def remember(self, keys: Iterable[OffloadKey], answer: LookupResult, now: float) -> None:
        """The tier has said so, or what became of a job did."""
        for key in keys:
            self.given.pop(key, None)  # so that the oldest answer is always the first
            self.given[key] = answer, now
        self.forget_stale(now)

    def forget_stale(self, now: float) -> None:
        """Let go of what is too old to be given, and of the oldest where there is too much."""
        while self.given:
            oldest = next(iter(self.given))
            if len(self.given) <= self._max_answers and now - self.given[oldest][1] < STALE_SECONDS:
                return
            del self.given[oldest]

    def bar(self, keys: Iterable[OffloadKey], until: float = inf) -> None:
        """The keys could not be loaded: they are a MISS until they are stored, or until then."""
        self.barred.update(dict.fromkeys(keys, until))
        while len(self.barred) > self._max_answers:
            del self.barred[next(iter(self.barred))]

    def stored(self, keys: Iterable[OffloadKey], now: float) -> None:
        """The keys can be loaded from now on."""
        keys = tuple(keys)
        for key in keys:
            self.barred.pop(key, None)
        self.remember(keys, LookupResult.HIT, now)
