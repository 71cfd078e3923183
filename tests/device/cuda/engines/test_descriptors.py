"""Cutting batches for a kernel, and the pool of descriptor buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.descriptors import CAPACITIES, MAX_FRAGMENTS, DescriptorPool, cut
from asyncoffload.errors import CapacityError, DeviceError
from tests.device.cuda.fake import Fake


def _bytes_of(batch: CopyBatch) -> list[tuple[int, int]]:
    """Every byte that moves, as (to, from), in order."""
    return [
        (dst + i, src + i)
        for dst, src, nbytes in zip(batch.dst.tolist(), batch.src.tolist(), batch.nbytes.tolist(), strict=True)
        for i in range(nbytes)
    ]


@given(lengths=st.lists(st.integers(0, 100), max_size=20), max_bytes=st.integers(1, 64))
def test_cutting_moves_the_same_bytes_in_the_same_order(lengths: list[int], max_bytes: int) -> None:
    nbytes = np.array(lengths, dtype=np.int64)
    places = 200 * np.arange(len(lengths))
    batch = CopyBatch(10_000 + places, 90_000 - places, nbytes)
    parts = cut(batch, max_bytes)
    assert _bytes_of(parts) == _bytes_of(batch)
    assert all(0 < length <= max_bytes for length in parts.nbytes.tolist())


@given(n=st.integers(1, 20), pieces=st.integers(1, 5))
def test_equal_fragments_are_cut_alike(n: int, pieces: int) -> None:
    places = 1000 * np.arange(n)
    batch = CopyBatch(places, places + 50_000, np.full(n, 16 * pieces))
    parts = cut(batch, 16)
    assert _bytes_of(parts) == _bytes_of(batch)
    assert parts.nbytes.tolist() == [16] * n * pieces


@pytest.mark.parametrize("n", [1, CAPACITIES[0], CAPACITIES[0] + 1, MAX_FRAGMENTS])
def test_a_buffer_has_room_for_what_was_asked(driver: Driver, n: int) -> None:
    pool = DescriptorPool(driver)
    one, other = pool.take(n), pool.take(n)
    for descriptors, value in ((one, 1), (other, 2)):
        for array in (descriptors.dst, descriptors.src, descriptors.words):
            assert array.shape == (n,)
            array[:] = value
    assert one.dst.sum() == one.src.sum() == one.words.sum() == n
    one.release()
    other.release()
    pool.close()


def test_buffers_are_used_again_and_pinned_memory_stays_bounded(fake: Fake, driver: Driver) -> None:
    pool = DescriptorPool(driver)
    for _ in range(1000):
        held = [pool.take(n) for n in (1, 100, 500, 8000)]
        for descriptors in held:
            descriptors.release()
    assert pool.in_use == 0
    assert fake.count("pinned_allocations") == 3  # capacities of 128, 512 and 8192
    assert fake.count("pinned_bytes") == pool.nbytes
    pool.close()
    pool.close()
    assert fake.count("pinned_allocations") == 0


def test_a_buffer_that_is_in_use_is_not_handed_out(driver: Driver) -> None:
    pool = DescriptorPool(driver)
    held = [pool.take(1) for _ in range(300)]
    assert len({descriptors.dst.ctypes.data for descriptors in held}) == len(held)


def test_releasing_twice_counts_once(driver: Driver) -> None:
    pool = DescriptorPool(driver)
    descriptors = pool.take(1)
    descriptors.release()
    descriptors.release()
    assert pool.in_use == 0
    assert pool.take(1).dst.ctypes.data != pool.take(1).dst.ctypes.data


def test_a_full_pool_says_so_until_something_is_released(driver: Driver) -> None:
    pool = DescriptorPool(driver, max_bytes=200 << 10)
    descriptors = pool.take(MAX_FRAGMENTS)
    with pytest.raises(CapacityError, match="release"):
        pool.take(MAX_FRAGMENTS)
    descriptors.release()
    pool.take(MAX_FRAGMENTS)


def test_a_pool_can_be_made_ready_within_its_bound(driver: Driver) -> None:
    ready, full = DescriptorPool(driver), DescriptorPool(driver, max_bytes=400 << 10)
    for pool in (ready, full):
        pool.prepare()
    assert ready.nbytes == 4 * full.nbytes // 2
    before = ready.nbytes
    for n in (1, *CAPACITIES):
        ready.take(n)
    ready.prepare()
    assert before == ready.nbytes - (192 << 10)  # the largest buffer was in use


def test_an_abandoned_buffer_is_not_used_again(driver: Driver) -> None:
    pool = DescriptorPool(driver, max_bytes=200 << 10)
    descriptors = pool.take(MAX_FRAGMENTS)
    descriptors.abandon()
    descriptors.release()
    with pytest.raises(CapacityError):
        pool.take(MAX_FRAGMENTS)


def test_where_no_pinned_memory_is_to_be_had_the_pool_is_as_before(fake: Fake, driver: Driver) -> None:
    pool = DescriptorPool(driver)
    fake.fail_next("cuMemHostAlloc", 2)
    with pytest.raises(DeviceError):
        pool.take(1)
    assert (pool.in_use, pool.nbytes) == (0, 0)
    pool.take(1)
