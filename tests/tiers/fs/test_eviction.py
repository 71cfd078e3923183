"""What is evicted, and what becomes of files that cannot be."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path
from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.account_file import bucket_of
from asyncoffload.tiers.fs.counting import Candidate
from asyncoffload.tiers.fs.eviction import Evictor
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.tiers.fs.usage import Usage

BLOCK = 4096


@pytest.fixture
def usage(tmp_path: Path) -> Iterator[Usage]:
    usage = Usage(str(tmp_path), is_empty=lambda: True)
    yield usage
    usage.leave()


def make_files(root: Path, usage: Usage, count: int) -> list[Candidate]:
    """Files that were used one after the other, entered as stored."""
    found = []
    for number in range(count):
        path = Path(block_path(str(root / ("0" * 32 + "_r0")), make_key(number.to_bytes(4, "big") * 4)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(BLOCK))
        os.utime(path, ns=(number + 1, number + 1))
        bucket = bucket_of(str(path))
        usage.begin(bucket)
        usage.end(bucket, added=BLOCK)
        found.append(Candidate(number + 1, str(path), BLOCK))
    return found


def refusing(paths: set[str], code: int) -> SystemCalls:
    def check(path: str) -> None:
        if path in paths:
            raise OSError(code, os.strerror(code), path)

    def unlink(path: str) -> None:
        check(path)
        os.unlink(path)

    def replace(old: str, new: str) -> None:
        check(old)
        os.replace(old, new)

    return SystemCalls(unlink=unlink, replace=replace)


def evictor_of(usage: Usage, found: list[Candidate], calls: SystemCalls) -> Evictor:
    evictor = Evictor(usage, calls=calls)
    evictor.gather(found)
    evictor.found_all()
    return evictor


def test_what_cannot_be_removed_is_passed_over(tmp_path: Path, usage: Usage, caplog: pytest.LogCaptureFixture) -> None:
    found = make_files(tmp_path, usage, 5)
    evictor = evictor_of(usage, found, refusing({found[0].path, found[2].path}, errno.EPERM))
    with caplog.at_level(logging.WARNING):
        assert evictor.evict(2 * BLOCK) == 2 * BLOCK
    assert [Path(candidate.path).exists() for candidate in found] == [True, False, True, False, True]
    assert usage.used == 3 * BLOCK
    assert evictor.take_removed() == [found[1].path, found[3].path]
    assert f"{found[0].path} cannot be evicted" in caplog.text


def test_a_store_takes_the_place_of_the_next_one_that_can_be_moved(tmp_path: Path, usage: Usage) -> None:
    found = make_files(tmp_path, usage, 4)
    Path(found[1].path).unlink()
    os.utime(found[2].path, ns=(100, 100))
    evictor = evictor_of(usage, found, refusing({found[0].path}, errno.EIO))
    temporary = f"{found[3].path}.tmp"
    place = evictor.reclaim(BLOCK, temporary)
    assert place is not None
    assert os.path.exists(temporary)
    evictor.settle(place)
    assert [Path(candidate.path).exists() for candidate in found] == [True, False, True, False]
    assert evictor.reclaim(BLOCK, temporary) is None


def test_a_disk_too_full_to_move_a_file_is_no_fault_of_the_file(tmp_path: Path, usage: Usage) -> None:
    found = make_files(tmp_path, usage, 2)
    evictor = evictor_of(usage, found, refusing({found[0].path}, errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        evictor.reclaim(BLOCK, f"{found[1].path}.tmp")
    assert usage.moment(bucket_of(found[0].path)) is not None
    assert len(evictor) == 2


def test_nor_is_a_place_that_a_file_cannot_be_moved_to(tmp_path: Path, usage: Usage) -> None:
    found = make_files(tmp_path, usage, 2)
    evictor = evictor_of(usage, found, SystemCalls())
    (tmp_path / "a file").touch()
    with pytest.raises(NotADirectoryError):
        evictor.reclaim(BLOCK, str(tmp_path / "a file" / "b.tmp"))
    assert len(evictor) == 2
    assert evictor.reclaim(BLOCK, f"{found[1].path}.tmp") is not None
