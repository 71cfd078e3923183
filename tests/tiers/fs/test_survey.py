"""What lies below a root is told by names alone, and what vanishes meanwhile is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path
from asyncoffload.testing.slots import small_layout, some_keys
from asyncoffload.tiers.fs.owner import OWNERS, Owner
from asyncoffload.tiers.fs.summary import summarise
from asyncoffload.tiers.fs.survey import (
    Kind,
    LayoutDirectory,
    fan_out_of,
    files_beside,
    files_in,
    layout_directories,
    owners_of,
    strange_entries,
)

(KEY,) = some_keys(small_layout(), 1)
PARENT, BLOCK = block_path("", KEY)[1:].split("/")
OWNER = "0123456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> LayoutDirectory:
    path = tmp_path / ("ab" * 16 + "_r3")
    (path / PARENT).mkdir(parents=True)
    return LayoutDirectory(str(path), b"\xab" * 16, 3)


def test_directories_of_layouts_have_exactly_their_names(tmp_path: Path, directory: LayoutDirectory) -> None:
    for name in ("ab" * 16, "ab" * 16 + "_r03", "AB" * 16 + "_r0", "ab" * 15 + "_r0", ".ab"):
        (tmp_path / name).mkdir()
    (tmp_path / ("cd" * 16 + "_r0")).write_text("a file")
    (tmp_path / ("ef" * 16 + "_r0")).symlink_to(directory.path)
    (tmp_path / "usage").touch()
    assert layout_directories(str(tmp_path)) == [directory]
    assert len(strange_entries(str(tmp_path))) == 7


@pytest.mark.parametrize(
    ("name", "kind", "has_key"),
    [
        (BLOCK, Kind.BLOCK, True),
        (BLOCK + ".bad", Kind.QUARANTINED, True),
        (f"{BLOCK}.{OWNER}.tmp", Kind.TEMPORARY, True),
        (f"other.{OWNER}.tmp", Kind.TEMPORARY, False),
        ("00" + BLOCK, Kind.STRANGE, False),
        ("notes.bad", Kind.STRANGE, False),
        ("notes", Kind.STRANGE, False),
    ],
)
def test_files_are_told_apart_by_name(directory: LayoutDirectory, name: str, kind: Kind, has_key: bool) -> None:
    path = Path(directory.path) / PARENT / name
    path.write_bytes(bytes(5000))
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    (file,) = files_in(directory, PARENT)
    assert (file.kind, file.key == KEY, file.nbytes) == (kind, has_key, 5000)
    assert file.modified_ns == 1_700_000_000_123_456_789
    assert file.owner == (OWNER if kind is Kind.TEMPORARY else None)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
def test_what_is_no_plain_file_is_strange(directory: LayoutDirectory, make: object) -> None:
    assert callable(make)
    make(Path(directory.path) / PARENT / BLOCK)
    (file,) = files_in(directory, PARENT)
    assert (file.kind, file.key) == (Kind.STRANGE, None)


def test_what_is_not_there_is_empty(directory: LayoutDirectory) -> None:
    gone = LayoutDirectory(directory.path + "x", b"", 0)
    assert not any((list(files_in(gone, PARENT)), list(files_beside(gone)), fan_out_of(gone), owners_of(gone)))


def test_a_file_that_vanishes_meanwhile_is_left_out(directory: LayoutDirectory) -> None:
    for name in (BLOCK, "a", "b"):
        (Path(directory.path) / PARENT / name).touch()
    files = files_in(directory, PARENT)
    seen = [next(files)]
    for name in os.listdir(os.path.join(directory.path, PARENT)):
        os.unlink(os.path.join(directory.path, PARENT, name))
    seen += files
    assert len(seen) == 1


def test_who_lives(directory: LayoutDirectory) -> None:
    me, dead = Owner(directory.path), Owner(directory.path)
    dead._file.close()
    (Path(directory.path) / OWNERS / "notes").touch()
    try:
        alive = {owner.name: (owner.alive, owner.pid) for owner in owners_of(directory)}
        assert alive == {me.name: (True, os.getpid()), dead.name: (False, os.getpid())}
        for owner in (me, dead):
            (Path(directory.path) / PARENT / f"{BLOCK}.{owner.name}.tmp").touch()
            (Path(directory.path) / f"config.json.{owner.name}.tmp").touch()
        summary = summarise(directory, now=0.0)
        assert (summary.being_written.files, summary.leftovers.files, summary.in_use) == (2, 2, True)
    finally:
        me.leave()
    assert not summarise(directory, now=0.0).in_use
