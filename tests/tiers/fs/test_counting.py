"""Counting what lies below a root: all of it, as far as it can be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path
from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.counting import Census, has_files
from asyncoffload.tiers.fs.usage import Usage

LAYOUT = "0" * 32 + "_r0"
BLOCK = 4096


@pytest.fixture
def usage(tmp_path: Path) -> Iterator[Usage]:
    usage = Usage(str(tmp_path))
    yield usage
    usage.leave()


def make_blocks(root: Path, buckets: range) -> list[Path]:
    paths = [Path(block_path(str(root / LAYOUT), make_key(bytes([bucket]) * 16))) for bucket in buckets]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(BLOCK))
    return paths


def hide(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Let a directory be one that cannot be listed; who runs the tests may be allowed everything."""
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path == str(place):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_what_is_not_ours_counts_and_is_no_candidate(tmp_path: Path, usage: Usage) -> None:
    [path] = make_blocks(tmp_path, range(1))
    quarantined = path.with_name(f"{path.name}.bad")
    quarantined.write_bytes(bytes(10))
    for name in ("notes.txt", "block.copy", "notes.bad", f"01{path.name[2:]}", path.name.upper()):
        path.with_name(name).write_bytes(bytes(100))
    found, entered = Census(str(tmp_path), usage).count(0)
    assert entered
    assert {candidate.path for candidate in found} == {str(path), str(quarantined)}
    assert [candidate.path for candidate in found if not candidate.modified] == [str(quarantined)]
    assert usage.used == BLOCK + 10 + 5 * 100


def test_what_cannot_be_listed_stays_in_doubt_and_the_rest_is_counted(
    tmp_path: Path, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_blocks(tmp_path, range(3))
    hide(monkeypatch, paths[1].parent)
    census = Census(str(tmp_path), usage)
    found = [candidate.path for bucket in range(256) for candidate in census.count(bucket)[0]]
    census.finish()
    assert found == [str(paths[0]), str(paths[2])]
    assert [error.filename for error in census.troubles] == [str(paths[1].parent)]
    assert usage.in_doubt == [1]
    assert usage.is_known
    assert usage.used == 2 * BLOCK


def test_what_was_known_of_it_before_is_kept(tmp_path: Path, usage: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_blocks(tmp_path, range(3))
    census = Census(str(tmp_path), usage)
    for bucket in range(256):
        census.count(bucket)
    assert usage.used == 3 * BLOCK
    usage.doubt(1)
    hide(monkeypatch, paths[1].parent)
    assert census.count(1) == ([], False)
    assert usage.used == 3 * BLOCK
    assert usage.in_doubt == [1]


def test_a_layout_that_cannot_be_listed_may_hold_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_blocks(tmp_path, range(1))
    hide(monkeypatch, tmp_path / LAYOUT)
    assert has_files(str(tmp_path))
