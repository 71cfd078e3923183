"""Both ways to perform a batch, and the choice between them."""

from __future__ import annotations

import ctypes
import errno

import numpy as np
import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device import batch_copy
from asyncoffload.device.batch_copy import BatchCopy, best_batch_copy, copy_one_by_one, copy_vectored

vectored = pytest.mark.skipif(best_batch_copy() is not copy_vectored, reason="process_vm_readv is forbidden here")
WAYS = [pytest.param(copy_vectored, marks=vectored), copy_one_by_one, best_batch_copy()]


@pytest.mark.parametrize("copy", WAYS)
@pytest.mark.parametrize("n", [0, 1, 1024, 1025, 3000])
def test_scattered_fragments_of_uneven_length_arrive(copy: BatchCopy, n: int) -> None:
    rng = np.random.default_rng(n)
    src = rng.integers(0, 256, n * 16, dtype=np.uint8)
    dst, expected = np.full(n * 16, 0xA5, dtype=np.uint8), np.full(n * 16, 0xA5, dtype=np.uint8)
    to, lengths = rng.permutation(n) * 16, rng.integers(1, 17, n)
    for i, (place, length) in enumerate(zip(to.tolist(), lengths.tolist(), strict=True)):
        expected[place : place + length] = src[16 * i : 16 * i + length]
    copy(CopyBatch(dst.ctypes.data + to, src.ctypes.data + 16 * np.arange(n), lengths))
    assert np.array_equal(dst, expected)


@vectored
@pytest.mark.parametrize("bad", [0, 1])
def test_an_address_that_is_not_mapped_is_an_error_not_a_crash(bad: int) -> None:
    memory = np.zeros(64, dtype=np.uint8)
    src = np.full(2, memory.ctypes.data, dtype=np.int64)
    src[bad] = 0
    with pytest.raises(OSError, match="bytes") as failure:
        copy_vectored(CopyBatch(memory.ctypes.data + np.array([0, 16]), src, np.array([16, 16])))
    assert failure.value.errno == errno.EFAULT


def test_where_the_system_call_is_forbidden_memmove_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(batch_copy, "_process_vm_readv", forbidden)
    assert best_batch_copy() is copy_one_by_one
