"""What leaves a root is heard of, whoever removed it, and whatever becomes of the journal meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import small_layout, some_keys
from asyncoffload.tiers.fs.departures import DEPARTURES, OLDER_DEPARTURES, Departures
from asyncoffload.tiers.fs.following import Follower
from asyncoffload.types import Fate

LAYOUT = small_layout()
NAME = directory_name(LAYOUT)
KEYS = some_keys(LAYOUT, 600)


def leave(root: Path, keys: list[OffloadKey], name: str = NAME, max_file_bytes: int = 1 << 20) -> None:
    departures = Departures(str(root), max_file_bytes=max_file_bytes)
    for key in keys:
        departures.note(block_path(str(root / name), key), 4096, Fate.EVICTED, "quota")
    departures.flush()


def follow(root: Path) -> Follower:
    follower = Follower(str(root), NAME)
    follower.begin()
    return follower


def rotate(root: Path) -> None:
    os.replace(root / DEPARTURES, root / OLDER_DEPARTURES)


def test_what_left_before_is_not_heard_of(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:3])
    follower = follow(tmp_path)
    assert follower.look() == ([], False)
    leave(tmp_path, KEYS[3:5])
    leave(tmp_path, KEYS[5:6], "f" * 32 + "_r1")
    assert follower.look() == (KEYS[3:5], False)
    follower.begin()
    assert follower.look() == ([], False)


def test_a_journal_that_begins_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    follower = follow(tmp_path)
    assert follower.look() == ([], False)
    leave(tmp_path, KEYS[:3])
    assert follower.look() == (KEYS[:3], False)


def test_it_is_read_to_the_end_after_it_was_rotated(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:1])
    follower = follow(tmp_path)
    leave(tmp_path, KEYS[1:2])
    rotate(tmp_path)
    assert follower.look() == (KEYS[1:2], False)
    leave(tmp_path, KEYS[2:4])
    assert follower.look() == (KEYS[2:4], False)


def test_it_may_lack_something_where_files_have_come_and_gone(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:1])
    follower = follow(tmp_path)
    for number in range(1, 4):
        leave(tmp_path, KEYS[number : number + 1])
        rotate(tmp_path)
    leave(tmp_path, KEYS[4:5])
    keys, may_lack = follower.look()
    assert may_lack
    assert set(keys) <= set(KEYS[1:5])
    assert follower.look() == ([], False)


def test_it_may_lack_something_where_the_first_file_was_rotated_already(tmp_path: Path) -> None:
    follower = follow(tmp_path)
    leave(tmp_path, KEYS[:1])
    rotate(tmp_path)
    leave(tmp_path, KEYS[1:2])
    assert follower.look() == (KEYS[1:2], True)


def test_it_may_lack_something_where_the_file_was_cut_or_removed(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:2])
    follower = follow(tmp_path)
    os.truncate(tmp_path / DEPARTURES, 0)
    assert follower.look() == ([], True)
    leave(tmp_path, KEYS[2:3])
    assert follower.look() == (KEYS[2:3], False)
    (tmp_path / DEPARTURES).unlink()
    assert follower.look() == ([], False)
    leave(tmp_path, KEYS[3:4])
    assert follower.look() == (KEYS[3:4], True)


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:1])
    line = (tmp_path / DEPARTURES).read_bytes()
    follower = follow(tmp_path)
    with (tmp_path / DEPARTURES).open("ab", buffering=0) as file:
        file.write(line[:-20])
        assert follower.look() == ([], False)
        file.write(line[-20:])
        assert follower.look() == (KEYS[:1], False)
        file.write(b"\0" * (3 << 20))  # nobody who writes lines leaves that
        assert follower.look() == ([], False)
        file.write(line)
        assert follower.look() == (KEYS[:1], False)


def test_what_cannot_be_read_is_complained_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    follower = follow(tmp_path)
    (tmp_path / DEPARTURES).mkdir()
    assert follower.look() == ([], False)
    assert "what others evict is not heard of" in caplog.text


def test_nothing_stays_open(tmp_path: Path) -> None:
    leave(tmp_path, KEYS[:1])
    before = len(os.listdir("/proc/self/fd"))
    follower = follow(tmp_path)
    for _ in range(3):
        rotate(tmp_path)
        leave(tmp_path, KEYS[:1])
        follower.look()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del follower
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=20))
def test_unless_it_says_so_nothing_is_lacking(batches: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, at, heard, may_lack = Path(place), 0, list[OffloadKey](), False
        follower = follow(root)
        for count, looks in [*batches, (1, True)]:
            leave(root, KEYS[at : at + count], max_file_bytes=6_000)
            at += count
            if looks:
                keys, may = follower.look()
                heard += keys
                may_lack |= may
        assert len(heard) == len(set(heard))
        assert heard == KEYS[:at] or (may_lack and set(heard) <= set(KEYS[:at]))
