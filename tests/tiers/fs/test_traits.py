"""What a file system does of what the tier builds upon, tried out."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncoffload.tiers.fs.directio import file_system_takes_direct_io
from asyncoffload.tiers.fs.traits import direct_alignment, traits_of


def refuse(number: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def test_a_local_file_system_does_everything(tmp_path: Path) -> None:
    traits = traits_of(str(tmp_path))
    assert [trait.name for trait in traits if not trait.works] == []
    assert all(trait.found and trait.matters for trait in traits)
    assert os.listdir(tmp_path) == []


def test_the_alignment_agrees_with_the_tier(tmp_path: Path) -> None:
    alignment = direct_alignment(str(tmp_path))
    works = 0 < max(alignment.offset, alignment.memory) <= 4096
    assert works == file_system_takes_direct_io(str(tmp_path / "page"))
    assert os.listdir(tmp_path) == []


def test_a_refusal_of_direct_io_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = os.open

    def open_file(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain_open(path, flags, mode)

    monkeypatch.setattr(os, "open", open_file)
    alignment = direct_alignment(str(tmp_path))
    assert (alignment.offset, alignment.memory, alignment.refusal) == (0, 0, "Invalid argument")
    assert os.listdir(tmp_path) == []


def test_a_transfer_that_is_refused_is_no_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", refuse(errno.EINVAL))
    alignment = direct_alignment(str(tmp_path))
    assert (alignment.offset, alignment.refusal) == (0, "Invalid argument")


@pytest.mark.parametrize(
    ("module", "function", "number", "trait"),
    [
        (fcntl, "flock", errno.ENOLCK, "flock excludes others"),
        (fcntl, "fcntl", errno.ENOTSUP, "a lock on bytes excludes others"),
        (os, "posix_fallocate", errno.ENODEV, "mmap is shared"),
    ],
)
def test_what_is_refused_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, function: str, number: int, trait: str
) -> None:
    monkeypatch.setattr(module, function, refuse(number))
    (missing,) = [each for each in traits_of(str(tmp_path)) if not each.works]
    assert missing.name == trait
    assert missing.found == os.strerror(number)
    assert os.listdir(tmp_path) == []


def test_locks_that_two_can_take_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    (missing,) = [each for each in traits_of(str(tmp_path)) if not each.works]
    assert missing.found == "two took one lock"


def test_coarse_times_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utime = os.utime

    def whole_seconds(fd: int, *, ns: tuple[int, int]) -> None:
        utime(fd, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))

    monkeypatch.setattr(os, "utime", whole_seconds)
    (missing,) = [each for each in traits_of(str(tmp_path)) if not each.works]
    assert missing.name == "times are kept to the microsecond"


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        traits_of(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        direct_alignment(str(tmp_path / "nowhere"))
