"""The driver's copies, on the fake device and on a real one where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import MAX_COPIES_PER_CALL, Driver
from asyncoffload.errors import DeviceError, InvalidArgument
from tests.device.cuda.fake import Fake, memory
from tests.device.cuda.machine import Machine, at, int64s

PAGE = 4096


def test_a_batch_copies_both_ways(machine: Machine) -> None:
    driver, stream = machine.driver, machine.stream
    source, back = machine.pinned(3 * PAGE), machine.pinned(3 * PAGE, 0x11)
    device = machine.on_device(3 * PAGE)
    offsets, nbytes = int64s(0, 1, 100, PAGE, 2 * PAGE + 3), int64s(1, 63, 1000, PAGE, 5)
    driver.copy_batch(device + offsets, at(source) + offsets, nbytes, stream, source_final=True)
    driver.copy_batch(at(back) + offsets, device + offsets, nbytes, stream, source_final=False)
    driver.synchronize_stream(stream)
    expected = np.full(3 * PAGE, 0x11, dtype=np.uint8)
    for offset, n in zip(offsets.tolist(), nbytes.tolist(), strict=True):
        expected[offset : offset + n] = source[offset : offset + n]
    assert np.array_equal(back, expected)


def test_a_batch_of_as_many_copies_as_allowed(machine: Machine) -> None:
    source, n = machine.pinned(MAX_COPIES_PER_CALL * 48), MAX_COPIES_PER_CALL
    device = machine.on_device(len(source), 0)
    offsets = np.arange(n, dtype=np.int64) * 48
    sizes = np.full(n, 48, dtype=np.int64)
    machine.driver.copy_batch(device + offsets[::-1], at(source) + offsets, sizes, machine.stream, source_final=True)
    assert np.array_equal(machine.read(device, len(source)).reshape(-1, 48), source.reshape(-1, 48)[::-1])


def test_the_arrays_of_a_batch_may_be_reused_at_once(driver: Driver, fake: Fake) -> None:
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    memory(host, PAGE)[:] = 5
    dst, src, nbytes = int64s(device), int64s(host), int64s(PAGE)
    fake.hold(stream)
    driver.copy_batch(dst, src, nbytes, stream, source_final=False)
    for array in (dst, src, nbytes):
        array[:] = 1
    fake.release(stream)
    driver.synchronize_stream(stream)
    assert (memory(device, PAGE) == 5).all()


def test_a_store_behind_a_slow_copy_reads_what_that_copy_writes(machine: Machine) -> None:
    driver, stream = machine.driver, machine.stream
    page = machine.on_device(PAGE, 0)
    new, stored = machine.pinned(PAGE), machine.pinned(PAGE, 0)
    ballast, filler = machine.on_device(machine.slow_bytes), machine.on_device(machine.slow_bytes)
    for _ in range(4):
        driver.copy_one(ballast, filler, machine.slow_bytes, stream)
    driver.copy_one(page, at(new), PAGE, stream)
    driver.copy_batch(int64s(at(stored)), int64s(page), int64s(PAGE), stream, source_final=False)
    driver.synchronize_stream(stream)
    assert np.array_equal(stored, new)


@pytest.mark.parametrize(("source_final", "read"), [(False, 2), (True, 1)])
def test_only_a_source_in_order_is_read_behind_the_stream(
    driver: Driver, fake: Fake, source_final: bool, read: int
) -> None:
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    memory(device, PAGE)[:] = 1
    fake.hold(stream)
    fake.fill(stream, device, PAGE, 2)
    driver.copy_batch(int64s(host), int64s(device), int64s(PAGE), stream, source_final=source_final)
    fake.release(stream)
    driver.synchronize_stream(stream)
    assert (memory(host, PAGE) == read).all()


def test_copies_of_nothing_are_left_out(driver: Driver, fake: Fake) -> None:
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    memory(host, PAGE)[:] = 3
    none = int64s()
    driver.copy_batch(none, none, none, stream, source_final=False)
    driver.copy_batch(int64s(device), int64s(host), int64s(0), stream, source_final=False)
    driver.copy_one(device, host, 0, stream)
    assert fake.calls("cuMemcpyBatchAsync") == fake.calls("cuMemcpyAsync") == 0
    driver.copy_batch(int64s(0, device), int64s(0, host), int64s(0, 7), stream, source_final=False)
    driver.synchronize_stream(stream)
    assert [(op.copies, op.nbytes) for op in fake.executed()] == [(1, 7)]


def test_a_batch_that_is_none_is_refused(driver: Driver, fake: Fake) -> None:
    good, stream = int64s(1, 2), driver.create_stream()
    too_many = np.ones(MAX_COPIES_PER_CALL + 1, dtype=np.int64)
    refused: list[tuple[Any, Any, Any, str]] = [
        (good.astype(np.int32), good, good, "dst must be a contiguous int64 array"),
        (good, np.ones(4, dtype=np.int64)[::2], good, "src must be a contiguous"),
        (good, good, good.reshape(1, 2), r"nbytes must be .* shape \(n,\)"),
        (good, good, int64s(1), "as many dst"),
        (too_many, too_many, too_many, "cut the batch"),
    ]
    for dst, src, nbytes, words in refused:
        with pytest.raises(InvalidArgument, match=words):
            driver.copy_batch(dst, src, nbytes, stream, source_final=False)
    assert fake.calls("cuMemcpyBatchAsync") == 0


def test_the_legacy_stream_takes_single_copies_only(machine: Machine) -> None:
    source = machine.pinned(PAGE)
    device = machine.on_device(PAGE)
    with pytest.raises(DeviceError) as refused:
        machine.driver.copy_batch(int64s(device), int64s(at(source)), int64s(PAGE), 0, source_final=False)
    assert refused.value.code == 1
    machine.driver.copy_one(device, at(source), PAGE, 0)
    machine.driver.synchronize_stream(0)
    assert np.array_equal(machine.read(device, PAGE), source)


@pytest.mark.parametrize("second_too", [True, False])
def test_a_copy_may_not_leave_the_registration_it_starts_in(machine: Machine, second_too: bool) -> None:
    driver, device = machine.driver, machine.on_device(2 * PAGE)
    room = np.zeros(4 * PAGE, dtype=np.uint8)
    host = -(-at(room) // PAGE) * PAGE
    starts = [host, host + PAGE] if second_too else [host]
    for start in starts:
        driver.register(start, PAGE)
    dst, src = int64s(device, device + PAGE), int64s(host, host + PAGE - 8)
    with pytest.raises(DeviceError, match="number 1, 16 bytes") as refused:
        driver.copy_batch(dst, src, int64s(8, 16), machine.stream, source_final=False)
    assert refused.value.code == 1
    assert not refused.value.lost
    driver.copy_batch(dst, src, int64s(8, 8), machine.stream, source_final=False)
    driver.synchronize_stream(machine.stream)
    for start in starts:
        driver.unregister(start)


def test_without_the_entry_point_batches_are_refused_and_single_copies_go(fake: Fake) -> None:
    fake.set_driver_version(12070)
    driver = Driver(fake.library)
    driver.bind(driver.retain_primary_context(0))
    assert not driver.has_batched_copy
    assert "no batched copies" in repr(driver)
    stream, host, device = driver.create_stream(), driver.alloc_pinned(8), driver.alloc_device(8)
    with pytest.raises(DeviceError, match="use copy_one"):
        driver.copy_batch(int64s(device), int64s(host), int64s(8), stream, source_final=False)
    driver.copy_one(device, host, 8, stream)
    driver.synchronize_stream(stream)
    assert (memory(device, 8) == memory(host, 8)).all()
