"""The answer to "why was this block a miss?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncoffload.keys import OffloadKey, block_hash_of, group_of
from asyncoffload.types.history import HistoryEntry


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a block is, was, when and why it left.

    Attributes:
        key: the block, with its namespace folded in.
        where: who has it now, by the name of the tier (``"CPU"`` for host memory), and in what state.
        history: what is known to have happened to it of late, oldest first.
        elsewhere: by tier, copies of the same hash that are not this block, and what sets them apart.
        verdict: all of it in one sentence.
    """

    key: OffloadKey
    where: Mapping[str, str]
    history: Sequence[HistoryEntry]
    elsewhere: Mapping[str, Sequence[str]]
    verdict: str

    def __str__(self) -> str:
        lines = [f"block {block_hash_of(self.key).hex()}, group {group_of(self.key)}: {self.verdict}"]
        lines += [f"  now      {tier}: {state}" for tier, state in self.where.items()]
        lines += [f"  beside   {tier}: {text}" for tier, texts in self.elsewhere.items() for text in texts]
        lines += [f"  {_time(entry.when)}  {entry.tier}: {entry_text(entry)}" for entry in self.history]
        return "\n".join(lines)


def entry_text(entry: HistoryEntry) -> str:
    """What happened, in a few words."""
    what = entry.what.value.replace("_", " ")
    call = f" ({entry.call})" if entry.call else ""
    return f"{what}{call}: {entry.why}" if entry.why else f"{what}{call}"


def _time(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().isoformat(" ", "milliseconds")
