"""One sentence out of what is known of a block."""

from __future__ import annotations

import pytest

from asyncoffload.core.verdict import MOST_ENTRIES, Evidence, ago, merged, verdict
from asyncoffload.types import Fate, HistoryEntry

NOW = 1_000_000.0


def entry(seconds_ago: float, tier: str, what: Fate, why: str = "", call: str = "") -> HistoryEntry:
    return HistoryEntry(NOW - seconds_ago, tier, what, why, call)


def judged(*history: HistoryEntry, **others: object) -> str:
    known: dict[str, object] = {"now": NOW, "primary": "CPU", "state": "", "tiers": ["fs"], "history": history}
    return verdict(Evidence(**{**known, **others}))  # type: ignore[arg-type]


STORED = entry(100, "CPU", Fate.STORED)
COPIED = entry(99, "fs", Fate.STORED)
LOST = entry(12, "CPU", Fate.LOST)
EVICTED = entry(50, "CPU", Fate.EVICTED)


@pytest.mark.parametrize(
    ("history", "others", "expected"),
    [
        ((), {"state": "ready"}, "in host memory: a load takes it from there"),
        ((), {"state": "ready", "holders": ["fs"]}, "in host memory: a load takes it from there; in 'fs' as well"),
        ((), {"state": "writing"}, "on its way into host memory: whoever loads it waits for that"),
        (
            (STORED, COPIED, EVICTED),
            {"holders": ["fs"]},
            "evicted from host memory 50 seconds ago, when a tier had a copy; in 'fs', from where a load brings it "
            "back",
        ),
        ((), {"holders": ["fs"]}, "in 'fs', from where a load brings it back"),
        (
            (STORED, entry(99, "fs", Fate.SHED, "cascade_blocks", "store"), LOST),
            {},
            "evicted from host memory 12 seconds ago without a copy in any tier; 'fs' shed its copy 99 seconds "
            "ago, because of the bound cascade_blocks",
        ),
        (
            (STORED, entry(99, "fs", Fate.SHED, "max_queued_bytes", "store"), LOST),
            {},
            "evicted from host memory 12 seconds ago without a copy in any tier; 'fs' shed its copy 99 seconds "
            "ago, because of the bound of the tier's queue, max_queued_bytes",
        ),
        (
            (STORED, COPIED, EVICTED, entry(20, "fs", Fate.EVICTED, "quota"), entry(1, "fs", Fate.MISSING)),
            {},
            "evicted from host memory 50 seconds ago, when a tier had a copy; 'fs' evicted it 20 seconds ago "
            "(the quota)",
        ),
        (
            (COPIED, entry(7200, "fs", Fate.EVICTED, "recycled")),
            {},
            "'fs' evicted it 2 hours ago, to make room for another block, which took its file",
        ),
        (
            (COPIED, entry(3, "fs", Fate.MISSING, call="load")),
            {},
            "'fs' had lost it 3 seconds ago: the file was removed by somebody else",
        ),
        ((entry(3, "fs", Fate.CORRUPT),), {}, "'fs' found it corrupt 3 seconds ago and set it aside"),
        ((entry(3, "fs", Fate.COLLECTED, "older_than"),), {}, "'fs' had it removed by gc 3 seconds ago (older_than)"),
        ((entry(3, "fs", Fate.FAILED, "I/O error", "load"),), {}, "'fs' failed 3 seconds ago in its load (I/O error)"),
        ((entry(3, "fs", Fate.TIMED_OUT, "", "store"),), {}, "'fs' was too slow 3 seconds ago in its store"),
        ((entry(3, "fs", Fate.DROPPED),), {}, "'fs' was not given its copy 3 seconds ago: the offers were taken back"),
        ((entry(3, "fs", Fate.LEFT),), {}, "'fs' removed it 3 seconds ago"),
        ((entry(3, "fs", Fate.DISCARDED),), {}, "'fs' removed what it had set aside as corrupt 3 seconds ago"),
        ((COPIED,), {}, "'fs' had it 99 seconds ago, and has it no more"),
        ((EVICTED,), {"tiers": ()}, "evicted from host memory 50 seconds ago, and there is no tier behind it"),
        ((entry(3, "CPU", Fate.VOIDED),), {"tiers": ()}, "voided by reset() 3 seconds ago"),
        ((entry(3, "CPU", Fate.FAILED),), {"tiers": ()}, "its copy from the device failed 3 seconds ago"),
        (
            (entry(3, "CPU", Fate.DEFERRED),),
            {"tiers": ()},
            "offered 3 seconds ago, but too rarely to be stored (store_threshold)",
        ),
        ((entry(3, "CPU", Fate.REFUSED),), {"tiers": ()}, "offered 3 seconds ago, when host memory had no room for it"),
        ((STORED,), {"tiers": ()}, "stored in host memory 100 seconds ago, and not there any more"),
        ((), {}, "never offered to this process"),
        (
            (),
            {"elsewhere": {"fs": ["the same hash under another fingerprint: dtype a there, b here", "and more"]}},
            "never offered to this process; 'fs' holds the same hash under another fingerprint: dtype a there, b here",
        ),
        ((), {"silent": ["fs"]}, "never offered to this process; 'fs' does not answer"),
        ((COPIED,), {"silent": ["fs"]}, "'fs', which had it 99 seconds ago, does not answer"),
        ((entry(3, "fs", Fate.LEFT),), {"silent": ["fs"]}, "'fs' removed it 3 seconds ago"),
        ((), {"journal": False}, "nowhere, and nothing is remembered of it, since journal_blocks is 0"),
        (
            (),
            {"forgotten": NOW - 600},
            "nowhere, and not offered to this process since 10 minutes ago: what was before is forgotten "
            "(journal_blocks)",
        ),
    ],
)
def test_each_end_of_a_block(history: tuple[HistoryEntry, ...], others: dict[str, object], expected: str) -> None:
    assert judged(*history, **others) == expected


def test_what_two_tell_is_told_once() -> None:
    manager = [
        STORED,
        entry(99.0, "fs", Fate.SHED, call="store"),
        entry(40, "fs", Fate.LEFT),
        entry(20, "fs", Fate.CORRUPT),
    ]
    tier = [
        entry(99.1, "fs", Fate.SHED, "quota", "store"),
        entry(40.5, "fs", Fate.EVICTED, "quota"),
        entry(20.2, "fs", Fate.CORRUPT, "the checksum does not match"),
    ]
    assert merged(manager, tier) == [STORED, *tier]


def test_what_happened_twice_is_told_twice() -> None:
    twice = [entry(99, "fs", Fate.SHED, "cascade_blocks"), entry(98, "fs", Fate.SHED, "quota")]
    assert merged(twice[1:], twice[:1]) == twice
    assert merged([entry(99, "fs", Fate.SHED), *twice]) == [entry(99, "fs", Fate.SHED), *twice]
    bare = [entry(40, "fs", Fate.LEFT), entry(20, "fs", Fate.LEFT)]
    assert merged(bare) == bare


def test_what_two_tell_in_the_same_words_is_told_by_the_later_teller() -> None:
    manager = [entry(99, "fs", Fate.SHED, "quota", "store"), entry(98, "fs", Fate.SHED, "quota", "store")]
    tier = [entry(99.1, "fs", Fate.SHED, "quota", "store")]
    assert merged(manager, tier) == tier
    assert merged(manager) == manager


def test_of_a_long_history_the_last_is_told() -> None:
    told = [entry(10_000 - number, "CPU", Fate.STORED) for number in range(5_000)]
    assert merged(told) == told[-MOST_ENTRIES:]


def test_other_tiers_and_other_times_are_other_events() -> None:
    told = [entry(99, "a", Fate.SHED), entry(99, "b", Fate.SHED, "quota"), entry(60, "a", Fate.SHED, "quota")]
    assert merged(told) == told


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "a moment ago"),
        (1.9, "a moment ago"),
        (2, "2 seconds ago"),
        (119, "119 seconds ago"),
        (120, "2 minutes ago"),
        (7200, "2 hours ago"),
        (400_000, "5 days ago"),
    ],
)
def test_spans_of_time(seconds: float, expected: str) -> None:
    assert ago(seconds) == expected
