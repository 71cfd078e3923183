"""Trouble that repeats itself is logged once in a while."""

from __future__ import annotations

import logging

import pytest

from asyncoffload.tiers.complaints import Complaints


def test_one_line_of_a_kind_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    complaints = Complaints(logging.getLogger("asyncoffload.test"), lambda: now, interval=10.0)
    for index in range(3):
        complaints.add("load", f"bad block {index}")
    complaints.add("store", "disk full")
    assert caplog.messages == ["bad block 0", "disk full"]
    now = 110.0
    complaints.add("load", "bad block 3")
    assert caplog.messages[2:] == ["bad block 3 (and 2 more like it before)"]
