"""What a look at something came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what it belongs to, such as ``"file system"``.
        name: what was looked at.
        level: how it is to be taken; BAD means that a tier cannot work so.
        found: what was found, in words.
        remedy: what follows from it and what to do, in words; empty where nothing is to be done.
    """

    topic: str
    name: str
    level: Level
    found: str
    remedy: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The most serious level among some findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
