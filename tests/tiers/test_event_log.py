"""The bounded record of what came and went."""

from __future__ import annotations

from asyncoffload.keys import make_key
from asyncoffload.tiers.event_log import EventLog
from asyncoffload.types import OffloadingEvent

A, B, C = (make_key(name) for name in (b"a", b"b", b"c"))


def test_events_come_in_order_and_once() -> None:
    log = EventLog("disk", 16)
    log.appeared([A, B])
    log.removed([A])
    log.removed([])
    assert log.take() == [OffloadingEvent((A, B), 16, "disk", False), OffloadingEvent((A,), 16, "disk", True)]
    assert log.take() == []


def test_overflow_drops_the_oldest_and_says_so() -> None:
    log = EventLog("disk", 16, max_events=2)
    for key in (A, B, C):
        log.appeared([key])
    assert [(list(event.keys), event.lost) for event in log.take()] == [([B], 1), ([C], 0)]
    log.appeared([A])
    assert log.take()[0].lost == 0
