"""When a file system is left alone, and when it is relied upon again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.tiers.fs.breaker import PROBES, Breaker


def test_it_is_closed_until_a_call_hangs() -> None:
    breaker = Breaker()
    assert not breaker.is_open
    assert breaker.trip()
    assert breaker.is_open
    assert not breaker.trip(), "it was open"


@given(st.lists(st.booleans(), max_size=20))
def test_only_probes_in_a_row_close_it(answers: list[bool]) -> None:
    breaker = Breaker()
    breaker.trip()
    in_a_row = 0
    for in_time in answers:
        breaker.probed(in_time)
        in_a_row = in_a_row + 1 if in_time else 0
        if in_a_row == PROBES:
            assert not breaker.is_open
            return
        assert breaker.is_open


def test_a_call_that_hangs_meanwhile_counts_against_it() -> None:
    breaker = Breaker()
    breaker.trip()
    for _ in range(PROBES - 1):
        breaker.probed(True)
    breaker.trip()
    breaker.probed(True)
    assert breaker.is_open
    assert repr(breaker) == f"<Breaker open, 1 of {PROBES} probes answered>"
