"""Whose temporary files are leftovers."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from asyncoffload.tiers.fs.owner import OWNERS, Leftovers, Owner, owner_of


def die(owner: Owner) -> None:
    """What a kill leaves of an owner: its file, without the lock."""
    owner._file.close()


def temporary_of(owner: Owner, directory: Path) -> Path:
    path = directory / f"block.bin.{owner.name}.tmp"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("ab.bin.0123456789abcdef.tmp", "0123456789abcdef"),
        ("config.json.0123456789abcdef.tmp", "0123456789abcdef"),
        ("ab.bin", None),
        ("ab.bin.tmp", None),
        ("ab.bin.0123456789ABCDEF.tmp", None),
        ("ab.bin.0123.tmp", None),
        (".0123456789abcdef.tmp", None),
    ],
)
def test_temporary_names_tell_their_owner(name: str, owner: str | None) -> None:
    assert owner_of(name) == owner


def test_only_the_leftovers_of_the_dead_are_removed(tmp_path: Path) -> None:
    me, neighbour, dead = Owner(str(tmp_path)), Owner(str(tmp_path)), Owner(str(tmp_path))
    try:
        files = {owner.name: temporary_of(owner, tmp_path) for owner in (me, neighbour, dead)}
        unknown = tmp_path / "block.bin.00000000deadbeef.tmp"
        unknown.touch()
        die(dead)
        leftovers = Leftovers(str(tmp_path), keep=me.name)
        for path in (*files.values(), unknown):
            leftovers.remove_if_dead(str(path), owner_of(path.name) or "")
        assert files[me.name].exists()
        assert files[neighbour.name].exists()
        assert not files[dead.name].exists()
        assert not unknown.exists()
        assert leftovers.removed == 2
        leftovers.forget_dead_owners()
        assert set(os.listdir(tmp_path / OWNERS)) == {me.name, neighbour.name}
    finally:
        me.leave()
        neighbour.leave()
    assert os.listdir(tmp_path / OWNERS) == []


def test_a_leftover_that_a_neighbour_collected_is_no_trouble(tmp_path: Path) -> None:
    leftovers = Leftovers(str(tmp_path), keep="me")
    leftovers.remove_if_dead(str(tmp_path / "gone.tmp"), "0123456789abcdef")
    leftovers.forget_dead_owners()
    assert leftovers.removed == 0


def test_a_full_disk_keeps_no_owner_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, text: bytes) -> int:  # noqa: ARG001
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    owner = Owner(str(tmp_path))
    monkeypatch.undo()
    assert os.listdir(tmp_path / OWNERS) == [owner.name]
    owner.leave()


def test_an_owner_that_cannot_be_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    Owner(str(tmp_path)).leave()
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        Owner(str(tmp_path))
    assert os.listdir(tmp_path / OWNERS) == []
    assert os.listdir("/proc/self/fd") == before


def test_leaving_twice_is_leaving_once(tmp_path: Path) -> None:
    owner = Owner(str(tmp_path))
    owner.leave()
    owner.leave()
    assert os.listdir(tmp_path / OWNERS) == []
