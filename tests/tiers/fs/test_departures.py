"""The journal of a root: bounded, appended to by several processes, and proof against whatever lies in it."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey, block_hash_of
from asyncoffload.testing.slots import small_layout, some_keys
from asyncoffload.tiers.fs.departures import (
    DEPARTURES,
    MAX_FILE_BYTES,
    MAX_WAITING,
    MIN_FILE_BYTES,
    OLDER_DEPARTURES,
    Departure,
    Departures,
    departures_of,
    departures_since,
)
from asyncoffload.tiers.fs.survey import strange_entries
from asyncoffload.types import Fate

LAYOUT = small_layout()
NAME = directory_name(LAYOUT)
LINE_BYTES = 170


def path_of(root: Path, key: OffloadKey) -> str:
    return block_path(str(root / NAME), key)


def leave(root: Path, keys: list[OffloadKey], what: Fate = Fate.EVICTED, why: str = "quota", when: float = 1e9) -> None:
    departures = Departures(str(root), clock=lambda: when)
    for key in keys:
        departures.note(path_of(root, key), 4096, what, why)
    departures.flush()


def keys_of(count: int, name: object = "") -> list[OffloadKey]:
    return some_keys(LAYOUT, count, name)


def files_of(root: Path) -> list[Path]:
    return [root / name for name in (DEPARTURES, OLDER_DEPARTURES) if (root / name).exists()]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    keys = keys_of(3)
    leave(tmp_path, keys[:2], when=1e9 + 0.25)
    departures = Departures(str(tmp_path), clock=lambda: 1e9 + 7)
    departures.note(path_of(tmp_path, keys[2]) + ".bad", 99, Fate.CORRUPT)
    assert [one.key for one in departures_of(str(tmp_path))] == keys[:2]
    departures.flush()
    departures.flush()
    assert departures_of(str(tmp_path)) == [
        Departure(1e9 + 0.25, Fate.EVICTED, "quota", 4096, NAME, keys[0]),
        Departure(1e9 + 0.25, Fate.EVICTED, "quota", 4096, NAME, keys[1]),
        Departure(1e9 + 7, Fate.CORRUPT, "", 99, NAME, keys[2]),
    ]
    digits = block_hash_of(keys[1]).hex()
    assert [one.key for one in departures_of(str(tmp_path), digits)] == [keys[1]]
    assert [one.key for one in departures_of(str(tmp_path), digits[:10])] == [keys[1]]
    assert departures_of(str(tmp_path), "0" * 12) == []
    assert departures_since(str(tmp_path), 1e9 + 1) == Counter({(Fate.CORRUPT, ""): 1})
    assert departures_since(str(tmp_path), 0.0) == Counter({(Fate.EVICTED, "quota"): 2, (Fate.CORRUPT, ""): 1})


def test_nothing_was_written(tmp_path: Path) -> None:
    Departures(str(tmp_path)).flush()
    assert files_of(tmp_path) == []
    assert departures_of(str(tmp_path)) == []


def test_the_files_are_the_tiers_own(tmp_path: Path) -> None:
    leave(tmp_path, keys_of(1))
    (tmp_path / OLDER_DEPARTURES).touch()
    assert strange_entries(str(tmp_path)) == []
    assert (tmp_path / DEPARTURES).stat().st_mode & 0o777 == 0o600


def test_grep_finds_a_block(tmp_path: Path) -> None:
    (key,) = keys_of(1)
    leave(tmp_path, [key])
    (line,) = (line for line in (tmp_path / DEPARTURES).read_text().splitlines() if line)
    assert line == f"1000000000.000000 evicted quota 4096 {os.path.relpath(path_of(tmp_path, key), tmp_path)}"


def test_both_files_are_bounded_and_the_newest_stays(tmp_path: Path) -> None:
    departures, keys, bound = Departures(str(tmp_path), max_file_bytes=4096), keys_of(300), 4096
    for key in keys:
        departures.note(path_of(tmp_path, key), 1, Fate.EVICTED)
        departures.flush()
    assert all(path.stat().st_size <= bound + 2 * LINE_BYTES for path in files_of(tmp_path))
    left = [one.key for one in departures_of(str(tmp_path))]
    assert left == keys[-len(left) :]
    assert len(left) >= bound // LINE_BYTES


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(None, MAX_FILE_BYTES), (1 << 20, MIN_FILE_BYTES), (1 << 40, MAX_FILE_BYTES), (1 << 30, 4 << 20)],
)
def test_a_quota_decides_how_long(tmp_path: Path, quota: int | None, expected: int) -> None:
    assert Departures(str(tmp_path), quota)._max_file_bytes == expected


def test_many_at_once(tmp_path: Path) -> None:
    keys = keys_of(3000)
    leave(tmp_path, keys)
    assert sorted(one.key for one in departures_of(str(tmp_path))) == sorted(keys)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whole_lines_survive_anything(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten and filled with foreign bytes, then appended to: no error, and what is untouched is read."""
    for path in files_of(tmp_path):
        path.unlink()
    before, after = keys_of(5, "before"), keys_of(5, "after")
    leave(tmp_path, before)
    path = tmp_path / DEPARTURES
    text = path.read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    foreign = data.draw(st.binary(max_size=300))
    path.write_bytes(text[:cut] + foreign)
    leave(tmp_path, after)
    found = [one.key for one in departures_of(str(tmp_path))]
    whole = text[:cut].count(b".bin\n")
    assert [key for key in found if key in before][:whole] == before[:whole]
    assert [key for key in found if key in after] == after
    for key in after:
        assert key in [one.key for one in departures_of(str(tmp_path), block_hash_of(key).hex())]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_foreign_content_is_no_departure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DEPARTURES).write_bytes(content)
    assert departures_of(str(tmp_path)) == []
    assert departures_of(str(tmp_path), "ab") == []


def lines_that_are_none() -> list[str]:
    digits = "ab" * 8
    good = f"1000000000.000000 evicted quota 4096 {NAME}/ab_g0/{digits}.bin"
    return [
        good.replace("evicted", "vanished"),
        good.replace(".bin", ".bi"),
        good.replace("ab_g0", "cd_g0"),
        good.replace("4096", "many"),
        good.replace("1000000000.000000", "1000000000"),
        good.replace(f"{NAME}/", f"{NAME}/../"),
        good.replace(" quota", ""),
        good + " and more",
    ]


@pytest.mark.parametrize("line", lines_that_are_none())
def test_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    (tmp_path / DEPARTURES).write_text(f"\n{line}\n")
    assert departures_of(str(tmp_path)) == []
    assert departures_of(str(tmp_path), "ab" * 8) == []


def in_another_process(root: str, number: int) -> None:
    departures = Departures(root, max_file_bytes=16 << 10)
    for key in keys_of(400, number):
        departures.note(block_path(os.path.join(root, NAME), key), number, Fate.EVICTED)
        departures.flush()


def test_several_processes_append_and_make_room(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=in_another_process, args=(str(tmp_path), number)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert all(path.stat().st_size <= (16 << 10) + 6 * LINE_BYTES for path in files_of(tmp_path))
    text = b"".join(path.read_bytes() for path in files_of(tmp_path))
    lines = [line for line in text.split(b"\n") if line]
    left = departures_of(str(tmp_path))
    assert len(left) == len(lines)  # no line was torn by another one
    assert len(left) >= (16 << 10) // LINE_BYTES
    assert {one.key for one in left} <= {key for number in range(3) for key in keys_of(400, number)}


@pytest.mark.parametrize("obstacle", ["directory", "link", "pipe"])
def test_what_stands_in_the_way_is_complained_about(
    tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, keys = tmp_path / DEPARTURES, keys_of(2)
    match obstacle:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(path)
    departures = Departures(str(tmp_path))
    for key in keys:
        departures.note(path_of(tmp_path, key), 1, Fate.EVICTED)
        with caplog.at_level(logging.WARNING):
            departures.flush()
    assert "is not written down" in caplog.text
    assert len(caplog.records) == 1
    assert departures_of(str(tmp_path)) == []
    assert not (tmp_path / "elsewhere").exists()
    path.rmdir() if obstacle == "directory" else path.unlink()
    departures.flush()
    assert [one.key for one in departures_of(str(tmp_path))] == keys


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    (tmp_path / DEPARTURES).mkdir()
    departures, keys = Departures(str(tmp_path)), keys_of(100)
    for turn in range(MAX_WAITING // 100 + 50):
        for key in keys:
            departures.note(path_of(tmp_path, key), 1, Fate.EVICTED)
        if not turn % 10:
            departures.flush()
    (tmp_path / DEPARTURES).rmdir()
    departures.flush()
    assert len(departures_of(str(tmp_path))) == MAX_WAITING


def test_a_root_that_is_gone_stays_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave(tmp_path / "root", keys_of(1))
    assert not (tmp_path / "root").exists()
    assert not caplog.records
    assert departures_of(str(tmp_path / "root")) == []


def test_lines_that_lie_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(50)
    leave(tmp_path, keys)
    for nbytes in (200, 1000, 4096):
        monkeypatch.setattr("asyncoffload.tiers.fs.departures._PIECE_BYTES", nbytes)
        assert sorted(one.key for one in departures_of(str(tmp_path))) == sorted(keys)
        assert [one.key for one in departures_of(str(tmp_path), block_hash_of(keys[7]).hex())] == [keys[7]]
