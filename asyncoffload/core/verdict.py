"""From what is known of a block to a sentence that a human understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asyncoffload.types import ARRIVALS, DEPARTURES, Fate, HistoryEntry

SAME_EVENT_SECONDS = 10.0
"""Two who tell of one event do so within this time: a tier when it sees it, a manager when its op has ended."""

MOST_ENTRIES = 64
"""Of one teller: what a block went through lately. One that comes and goes all the time has thousands."""

_WORDS = {
    "cascade_blocks": "the bound cascade_blocks",
    "max_queued_bytes": "the bound of the tier's queue, max_queued_bytes",
    "quota": "the quota",
    "min_free": "min_free",
    "space": "a full disk",
    "pause": "its file system, which did not answer",
    "recycled": "another block, which took its file",
}


_REFUSALS = {
    "dirty_victims": " but for blocks that no tier has (dirty_victims)",
    "stranded": ", since calls of a tier that hang had too many of its slots",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a block now.

    Attributes:
        now: seconds since the epoch.
        primary: the name of host memory.
        state: of the block in it: ``"ready"``, ``"writing"``, or nothing.
        tiers: the tiers that were asked.
        holders: those of them that have it.
        silent: those of them that did not answer.
        history: what has happened, oldest first.
        elsewhere: by tier, what is like the block but is another one.
        journal: whether events were kept at all.
        forgotten: until when, in seconds since the epoch, events were forgotten; None where all are known.
    """

    now: float
    primary: str
    state: str
    tiers: Sequence[str] = ()
    holders: Sequence[str] = ()
    silent: Sequence[str] = ()
    history: Sequence[HistoryEntry] = ()
    elsewhere: Mapping[str, Sequence[str]] = field(default_factory=dict)
    journal: bool = True
    forgotten: float | None = None


def verdict(found: Evidence) -> str:
    """Where the block is, or why it is not there."""
    in_tiers = " and ".join(map(repr, found.holders))
    if found.state == "ready":
        return "in host memory: a load takes it from there" + (f"; in {in_tiers} as well" if in_tiers else "")
    if found.state == "writing":
        return "on its way into host memory: whoever loads it waits for that"
    clauses = [_primary_clause(found)] if _last(found.history, found.primary) else []
    if in_tiers:
        return "; ".join([*clauses, f"in {in_tiers}, from where a load brings it back"])
    for tier in found.tiers:
        told = _last(found.history, tier)
        if told is not None and tier in found.silent and told.what in ARRIVALS:
            clauses.append(f"{tier!r}, which had it {ago(found.now - told.when)}, does not answer")
        elif told is not None:
            clauses.append(f"{tier!r} {_tier_clause(told, found.now)}")
    if not clauses:
        clauses.append(_nothing_known(found))
    clauses += [f"{tier!r} holds {text}" for tier, texts in found.elsewhere.items() for text in texts[:1]]
    clauses += [f"{tier!r} does not answer" for tier in found.silent if not _last(found.history, tier)]
    return "; ".join(clauses)


def span(seconds: float) -> str:
    """How long, in the largest unit of which it is two or more."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


def ago(seconds: float) -> str:
    """How long ago."""
    return f"{span(seconds)} ago" if seconds >= 2 else "a moment ago"


def cause(why: str) -> str:
    """A reason in words."""
    return _WORDS.get(why, why)


def merged(*histories: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """The last of several tellings of one history, in order of time.

    What two tell is told once, by who knows more, or else by the later of the two tellers.
    """
    told = [(entry, teller) for teller, history in enumerate(histories) for entry in history[-MOST_ENTRIES:]]
    told.sort(key=lambda one: one[0].when)
    return [entry for entry, teller in told if not any(_tells_better(other, by, entry, teller) for other, by in told)]


def _tells_better(other: HistoryEntry, by: int, entry: HistoryEntry, teller: int) -> bool:
    if other.tier != entry.tier or abs(other.when - entry.when) > SAME_EVENT_SECONDS:
        return False
    if entry.what is Fate.LEFT:
        return other.what in DEPARTURES and other.what is not Fate.LEFT
    if other.what is not entry.what or by == teller:
        return False
    return (not entry.why and bool(other.why)) or (entry.why == other.why and by > teller)


def _last(history: Sequence[HistoryEntry], tier: str) -> HistoryEntry | None:
    """The last word on a block in a tier. That it was missing later adds nothing to how it left."""
    told = [entry for entry in history if entry.tier == tier]
    while len(told) > 1 and told[-1].what is Fate.MISSING and told[-2].what not in ARRIVALS:
        told.pop()
    return told[-1] if told else None


def _primary_clause(found: Evidence) -> str:
    entry = _last(found.history, found.primary)
    assert entry is not None
    when = ago(found.now - entry.when)
    match entry.what:
        case Fate.LOST:
            return f"evicted from host memory {when} without a copy in any tier"
        case Fate.EVICTED if found.tiers:
            return f"evicted from host memory {when}, when a tier had a copy"
        case Fate.EVICTED:
            return f"evicted from host memory {when}, and there is no tier behind it"
        case Fate.VOIDED:
            return f"voided by reset() {when}"
        case Fate.FAILED:
            return f"its copy from the device failed {when}"
        case Fate.DEFERRED:
            return f"offered {when}, but too rarely to be stored (store_threshold)"
        case Fate.REFUSED:
            return f"offered {when}, when host memory had no room for it{_REFUSALS.get(entry.why, '')}"
        case _:
            return f"{entry.what.value} in host memory {when}, and not there any more"


def _tier_clause(entry: HistoryEntry, now: float) -> str:
    when = ago(now - entry.when)
    because = f" ({cause(entry.why)})" if entry.why else ""
    match entry.what:
        case Fate.SHED:
            return f"shed its {'load' if entry.call == 'load' else 'copy'} {when}" + (
                f", because of {cause(entry.why)}" if entry.why else ""
            )
        case Fate.EVICTED if entry.why == "recycled":
            return f"evicted it {when}, to make room for {cause(entry.why)}"
        case Fate.EVICTED:
            return f"evicted it {when}{because}"
        case Fate.CORRUPT:
            return f"found it corrupt {when} and set it aside{because}"
        case Fate.DISCARDED:
            return f"removed what it had set aside as corrupt {when}"
        case Fate.COLLECTED:
            return f"had it removed by gc {when}{because}"
        case Fate.MISSING:
            return f"had lost it {when}: the file was removed by somebody else"
        case Fate.TIMED_OUT | Fate.FAILED:
            how = "was too slow" if entry.what is Fate.TIMED_OUT else "failed"
            return f"{how} {when} in its {entry.call or 'call'}{because}"
        case Fate.DROPPED:
            return f"was not given its copy {when}: the offers were taken back"
        case Fate.LEFT:
            return f"removed it {when}"
        case _:
            return f"had it {when}, and has it no more"


def _nothing_known(found: Evidence) -> str:
    if not found.journal:
        return "nowhere, and nothing is remembered of it, since journal_blocks is 0"
    if found.forgotten is not None:
        return f"nowhere, and not offered to this process since {ago(found.now - found.forgotten)}: " + (
            "what was before is forgotten (journal_blocks)"
        )
    return "never offered to this process"
