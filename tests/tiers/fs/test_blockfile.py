"""One block to a file and back."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat, file_bytes
from asyncoffload.tiers.fs.system_calls import SystemCalls

FORMAT = BlockFormat(b"f" * 16, rank=0)
KEY = make_key(b"\x01" * 32)
SIZES = [1, 4095, 4096, 4097, 70_000]


def payload_of(nbytes: int) -> memoryview:
    """Page-aligned memory with recognisable bytes."""
    memory = mmap.mmap(-1, nbytes)
    memory.write((bytes(range(251)) * (nbytes // 251 + 1))[:nbytes])
    return memoryview(memory)


def place_for(tmp_path: Path) -> str:
    """A path in a directory that is not there yet."""
    return str(tmp_path / "ab_g0" / "abcde.bin")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_written_is_read(tmp_path: Path, nbytes: int, direct: bool) -> None:
    path, payload, into = place_for(tmp_path), payload_of(nbytes), memoryview(mmap.mmap(-1, nbytes))
    files = BlockFiles(FORMAT, "owner", direct=direct)
    files.write(path, KEY, payload)
    files.read(path, KEY, into)
    assert into == payload
    assert os.stat(path).st_size == file_bytes(nbytes)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert os.listdir(os.path.dirname(path)) == ["abcde.bin"]


@pytest.mark.parametrize("nbytes", SIZES)
def test_files_are_the_same_however_they_are_written(tmp_path: Path, nbytes: int) -> None:
    contents = set()
    for direct in (True, False):
        path = place_for(tmp_path / str(direct))
        os.makedirs(os.path.dirname(path))
        BlockFiles(FORMAT, "owner", direct=direct).write(path, KEY, payload_of(nbytes))
        contents.add(Path(path).read_bytes())
    assert len(contents) == 1


def test_a_block_that_stands_there_is_replaced(tmp_path: Path) -> None:
    path, files, into = place_for(tmp_path), BlockFiles(FORMAT, "owner"), memoryview(bytearray(4096))
    files.write(path, KEY, memoryview(bytes(4096)))
    files.write(path, KEY, payload_of(4096))
    files.read(path, KEY, into)
    assert into == payload_of(4096)


def test_a_file_system_that_refuses_direct_io_is_remembered(tmp_path: Path) -> None:
    opened: list[int] = []

    def refuses_direct(path: str, flags: int, mode: int) -> int:
        opened.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT:
            Path(path).touch()  # as some file systems do
            raise OSError(errno.EINVAL, "no direct I/O here")
        return os.open(path, flags, mode)

    path, into = str(tmp_path / "block.bin"), memoryview(bytearray(4096))
    files = BlockFiles(FORMAT, "owner", direct=True, calls=SystemCalls(open_file=refuses_direct))
    files.write(path, KEY, payload_of(4096))
    files.read(path, KEY, into)
    assert into == payload_of(4096)
    assert [bool(flag) for flag in opened] == [True, False, False]
    assert not files.direct


def test_a_write_that_stops_early_is_continued(tmp_path: Path) -> None:
    calls: list[int] = []

    def half(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        joined = b"".join(buffers)
        return os.pwrite(fd, joined[: max(4096, len(joined) // 8192 * 4096)], offset)

    path, into = place_for(tmp_path), memoryview(bytearray(70_000))
    BlockFiles(FORMAT, "owner", calls=SystemCalls(pwritev=half)).write(path, KEY, payload_of(70_000))
    BlockFiles(FORMAT, "owner").read(path, KEY, into)
    assert into == payload_of(70_000)
    assert len(calls) > 2


@pytest.mark.parametrize("moved", [0, OSError(errno.EIO, "bad sector"), OSError(errno.ENOSPC, "disk full")])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, moved: int | OSError) -> None:
    def fails(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if isinstance(moved, OSError) and offset:
            raise moved
        return os.pwritev(fd, buffers[:1], offset) if not offset else 0

    path = place_for(tmp_path)
    with pytest.raises(OSError, match=r"stopped after 4096 of 8192|bad sector|disk full"):
        BlockFiles(FORMAT, "owner", calls=SystemCalls(pwritev=fails)).write(path, KEY, payload_of(4096))
    assert os.listdir(os.path.dirname(path)) == []


def test_own_leftover_is_no_obstacle(tmp_path: Path) -> None:
    path, into = tmp_path / "block.bin", memoryview(bytearray(4096))
    Path(f"{path}.owner.tmp").write_bytes(b"from a write that could not clean up")
    files = BlockFiles(FORMAT, "owner")
    files.write(str(path), KEY, payload_of(4096))
    files.read(str(path), KEY, into)
    assert into == payload_of(4096)


def test_a_bad_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "block.bin"
    path.write_bytes(b"not a block")
    with pytest.raises(CorruptBlockError, match="ends after 11 bytes of 8192"):
        BlockFiles(FORMAT, "owner").read(str(path), KEY, memoryview(bytearray(4096)))
    assert os.listdir(tmp_path) == ["block.bin.bad"]


def test_a_good_file_that_took_its_place_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "block.bin")
    Path(path).write_bytes(b"not a block")

    def neighbour_comes_first(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        BlockFiles(FORMAT, "neighbour").write(path, KEY, payload_of(4096))
        return os.preadv(fd, buffers, offset)

    into = memoryview(bytearray(4096))
    with pytest.raises(CorruptBlockError):
        BlockFiles(FORMAT, "owner", calls=SystemCalls(preadv=neighbour_comes_first)).read(path, KEY, into)
    BlockFiles(FORMAT, "owner").read(path, KEY, into)
    assert into == payload_of(4096)
    assert os.listdir(tmp_path) == ["block.bin"]


def test_nothing_hangs_on_what_is_no_file(tmp_path: Path) -> None:
    files, into = BlockFiles(FORMAT, "owner"), memoryview(bytearray(4096))
    os.mkfifo(tmp_path / "pipe")
    os.mkdir(tmp_path / "directory")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    expected = {"pipe": errno.ESPIPE, "directory": errno.EISDIR, "link": errno.ELOOP, "file/below": errno.ENOTDIR}
    for name, number in expected.items():
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            files.read(str(tmp_path / name), KEY, into)
        assert caught.value.errno == number


def test_a_root_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlockFiles(FORMAT, "owner").write(place_for(tmp_path / "gone"), KEY, payload_of(4096))
    assert os.listdir(tmp_path) == []
