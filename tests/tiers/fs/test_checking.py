"""A block is judged as a load judges it, whatever happened to its file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncoffload.core.layout import fingerprint
from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import make_key
from asyncoffload.testing.slots import content_of, small_layout, some_keys
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.checking import BlockChecker, State
from asyncoffload.tiers.fs.format import BlockFormat, file_bytes
from asyncoffload.tiers.fs.survey import LayoutDirectory

LAYOUT = small_layout()
KEY, OTHER = some_keys(LAYOUT, 2)
FILES = BlockFiles(BlockFormat(fingerprint(LAYOUT), 0), "0123456789abcdef")
NBYTES = LAYOUT.group_bytes(0)


def checker(root: Path, *, with_layout: bool = True) -> BlockChecker:
    return BlockChecker(LayoutDirectory(str(root), fingerprint(LAYOUT), 0), LAYOUT if with_layout else None)


def written(root: Path) -> Path:
    FILES.write(str(root / "block"), KEY, memoryview(content_of(KEY, NBYTES)))
    return root / "block"


@pytest.mark.parametrize("with_layout", [True, False])
def test_a_good_block(tmp_path: Path, with_layout: bool) -> None:
    verdict = checker(tmp_path, with_layout=with_layout).check(str(written(tmp_path)), KEY, set_aside=True)
    assert (verdict.state, verdict.trouble, verdict.nbytes) == (State.GOOD, "", file_bytes(NBYTES))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, file_bytes(NBYTES) - 1), bit=st.integers(0, 7), with_layout=st.booleans())
def test_whichever_bit_changes_it_is_bad(tmp_path: Path, offset: int, bit: int, with_layout: bool) -> None:
    path = written(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1 << bit
    path.write_bytes(damaged)
    verdict = checker(tmp_path, with_layout=with_layout).check(str(path), KEY)
    assert verdict.state is State.BAD
    with pytest.raises(CorruptBlockError):
        FILES.read(str(path), KEY, memoryview(bytearray(NBYTES)))


@pytest.mark.parametrize("with_layout", [True, False])
@pytest.mark.parametrize("nbytes", [0, 100, 4096, file_bytes(NBYTES) - 1])
def test_a_file_that_was_cut_is_bad(tmp_path: Path, with_layout: bool, nbytes: int) -> None:
    path = written(tmp_path)
    os.truncate(path, nbytes)
    assert checker(tmp_path, with_layout=with_layout).check(str(path), KEY).state is State.BAD


def test_a_block_under_another_key_is_bad(tmp_path: Path) -> None:
    key = make_key(bytes(32), 0)
    verdict = checker(tmp_path).check(str(written(tmp_path)), key)
    assert "the key is" in verdict.trouble


def test_a_group_that_the_layout_has_not(tmp_path: Path) -> None:
    verdict = checker(tmp_path).check(str(written(tmp_path)), make_key(bytes(32), 7), set_aside=True)
    assert (verdict.state, verdict.set_aside) == (State.BAD, False)
    assert "groups 0 to 1, not 7" in verdict.trouble


def test_a_block_that_is_gone(tmp_path: Path) -> None:
    for with_layout in (True, False):
        assert checker(tmp_path, with_layout=with_layout).check(str(tmp_path / "no"), KEY).state is State.GONE


def test_what_the_system_refuses_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path))
    verdict = checker(tmp_path).check(str(tmp_path / "link"), KEY, set_aside=True)
    assert verdict.state is State.UNREADABLE
    assert verdict.trouble


def test_one_that_was_replaced_by_a_good_one_is_not_set_aside(tmp_path: Path) -> None:
    path = written(tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    judge = checker(tmp_path)
    check = judge._files.check

    def replaced_meanwhile(*arguments: object) -> str:
        trouble = check(*arguments)  # type: ignore[arg-type]
        (tmp_path / "new").write_bytes(good)
        (tmp_path / "new").replace(path)
        return trouble

    judge._files.check = replaced_meanwhile  # type: ignore[assignment]
    verdict = judge.check(str(path), KEY, set_aside=True)
    assert (verdict.state, verdict.set_aside) == (State.BAD, False)
    assert path.read_bytes() == good


def test_one_that_keeps_its_name_was_not_set_aside(tmp_path: Path) -> None:
    path = written(tmp_path)
    os.truncate(path, 100)
    (tmp_path / "block.bad" / "in the way").mkdir(parents=True)
    verdict = checker(tmp_path).check(str(path), KEY, set_aside=True)
    assert (verdict.state, verdict.set_aside, path.exists()) == (State.BAD, False, True)


def test_a_transfer_that_direct_io_refuses_is_done_without(tmp_path: Path) -> None:
    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if judge._files.direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.preadv(fd, buffers, offset)

    judge = checker(tmp_path)
    judge._files._preadv = preadv
    assert judge.check(str(written(tmp_path)), KEY).state is State.GOOD
    assert not judge._files.direct
