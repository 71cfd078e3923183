"""The laws of the fake driver that nothing else would notice if they were broken, asked of its bare entry points."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import DeviceError
from tests.device.cuda.fake import Fake, memory
from tests.device.cuda.machine import at, int64s

PAGE = 4096
STREAM_ORDER, DURING_CALL, ANY_ORDER = 1, 2, 3
NO_COPY = 2**64 - 1


class Bare:
    """The batched copy with all of its nine arguments open."""

    def __init__(self, driver: Driver, fake: Fake) -> None:
        self.library = ctypes.CDLL(fake.library)
        self.stream = driver.create_stream()
        self.host, self.device = driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)

    def batch(
        self, attributes: Sequence[Sequence[int]], starts: Sequence[int], sizes: Sequence[int]
    ) -> tuple[int, int]:
        """Copies of these sizes, with attributes (order, flags) from these copies on: the code, and who is to blame."""
        n = len(sizes)
        dst, src = (np.arange(n, dtype=np.int64) * 64 + base for base in (self.device, self.host))
        words = [word for order, flags in attributes for word in (order, 0, 0, 0, 0, flags)]
        bad = ctypes.c_size_t(0)
        function = self.library.cuMemcpyBatchAsync
        function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2
        function.argtypes += [ctypes.c_size_t] + [ctypes.c_void_p] * 2
        first = (ctypes.c_size_t * max(len(starts), 1))(*starts)
        size = np.array(sizes, dtype=np.int64)
        attrs = (ctypes.c_int * max(len(words), 1))(*words)
        n_attrs = len(attributes)
        code = function(at(dst), at(src), at(size), n, attrs, first, n_attrs, ctypes.byref(bad), self.stream)
        return code, bad.value


@pytest.fixture
def bare(driver: Driver, fake: Fake) -> Bare:
    return Bare(driver, fake)


@pytest.mark.parametrize(
    ("attributes", "starts", "sizes", "answer"),
    [
        ([(STREAM_ORDER, 0)], [0], [8, 8], (0, NO_COPY)),
        ([(STREAM_ORDER, 1), (ANY_ORDER, 0)], [0, 1], [8, 8], (0, NO_COPY)),
        ([(DURING_CALL, 0)], [0], [8], (0, NO_COPY)),
        ([(0, 0)], [0], [8], (1, NO_COPY)),
        ([(4, 0)], [0], [8], (1, NO_COPY)),
        ([(STREAM_ORDER, 2)], [0], [8], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)], [1], [8, 8], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)] * 2, [0, 0], [8, 8], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)] * 2, [0, 2], [8, 8], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)] * 2, [0, 1], [8], (1, NO_COPY)),
        ([], [], [8], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)], [0], [], (1, NO_COPY)),
        ([(STREAM_ORDER, 0)], [0], [8, PAGE], (1, 1)),
    ],
)
def test_what_a_batch_must_say(
    bare: Bare,
    attributes: Sequence[Sequence[int]],
    starts: Sequence[int],
    sizes: Sequence[int],
    answer: tuple[int, int],
) -> None:
    assert bare.batch(attributes, starts, sizes) == answer


def test_each_copy_is_read_in_the_order_of_its_own_attributes(bare: Bare, driver: Driver, fake: Fake) -> None:
    memory(bare.host, PAGE)[:] = 1
    fake.hold(bare.stream)
    assert bare.batch([(STREAM_ORDER, 0), (ANY_ORDER, 0)], [0, 1], [8, 8, 8])[0] == 0
    memory(bare.host, PAGE)[:] = 2
    fake.release(bare.stream)
    driver.synchronize_stream(bare.stream)
    assert memory(bare.device, PAGE)[[0, 64, 128]].tolist() == [2, 1, 1]


def test_the_plain_symbol_takes_nine_arguments_and_its_successor_eight(fake: Fake) -> None:
    Driver(fake.library)
    library = ctypes.CDLL(fake.library)
    found = {}
    for version in (12070, 12080, 13000):
        address, status = ctypes.c_void_p(), ctypes.c_int(-1)
        code = library.cuGetProcAddress_v2(
            b"cuMemcpyBatchAsync", ctypes.byref(address), version, ctypes.c_uint64(0), ctypes.byref(status)
        )
        assert code == 0
        found[version] = (address.value, status.value)
    plain, successor = (
        ctypes.cast(function, ctypes.c_void_p).value
        for function in (library.cuMemcpyBatchAsync, library.cuMemcpyBatchAsync_v2)
    )
    assert found == {12070: (None, 1), 12080: (plain, 0), 13000: (successor, 0)}


def test_a_hold_lets_through_what_it_is_told(driver: Driver, fake: Fake) -> None:
    fake.hold()
    stream, page = driver.create_stream(), driver.alloc_device(4)
    for i in range(4):
        fake.fill(stream, page + i, 1, i)
    fake.step(stream, 3)
    fake.settle()
    assert memory(page, 4).tolist() == [0, 1, 2, 0xCD]
    assert fake.count("queued_operations") == 1
    fake.release()
    driver.synchronize_stream(stream)
    assert memory(page, 4).tolist() == [0, 1, 2, 3]
    later = driver.create_stream()
    fake.fill(later, page, 1, 9)
    driver.synchronize_stream(later)


def test_copies_of_pageable_memory_block_their_caller(driver: Driver, fake: Fake) -> None:
    context, stream, device = driver.retain_primary_context(0), driver.create_stream(), driver.alloc_device(PAGE)
    pageable = np.full(PAGE, 6, dtype=np.uint8)

    def copy() -> None:
        driver.bind(context)
        driver.copy_one(device, at(pageable), PAGE, stream)

    fake.hold(stream)
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(copy)
        while not fake.count("queued_operations"):
            pass
        assert not copying.done()
        fake.release(stream)
        copying.result()
    assert (memory(device, PAGE) == 6).all()


def test_adopted_memory_is_device_memory(driver: Driver, fake: Fake) -> None:
    stream, host = driver.create_stream(), driver.alloc_pinned(PAGE)
    cache = np.zeros(PAGE, dtype=np.uint8)
    memory(host, PAGE)[:] = 8
    fake.hold(stream)
    with fake.device_memory(cache) as address:
        driver.copy_one(address, host, PAGE, stream)  # would block if it were pageable
        assert fake.count("load_bytes_in_flight") == PAGE
        with pytest.raises(DeviceError):
            driver.copy_one(address + 1, host, PAGE, stream)
        fake.release(stream)
        driver.synchronize_stream(stream)
    assert (cache == 8).all()
    assert (fake.count("load_bytes_in_flight"), fake.count("peak_load_bytes_in_flight")) == (0, PAGE)
    assert fake.count("peak_store_bytes_in_flight") == 0


@pytest.mark.parametrize("what", ["copy", "descriptors"])
def test_memory_freed_under_queued_work_is_noted(driver: Driver, what: str) -> None:
    fake = Fake()
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    fake.hold(stream)
    if what == "copy":
        driver.copy_one(device, host, PAGE, stream)
    else:
        fake.launch_copies(stream, host, host + 8, host + 16, 1)
    driver.free_pinned(host)
    assert fake.count("violations") == 1
    fake.reset()
    assert fake.count("violations") == 0


@pytest.mark.parametrize(
    ("shift", "pageable", "code"), [(0, False, None), (4, False, 716), (0, True, 700)], ids=["good", "odd", "pageable"]
)
def test_a_kernel_reaches_pinned_and_device_memory_in_words(
    driver: Driver, shift: int, pageable: bool, code: int | None
) -> None:
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    room = np.zeros(PAGE, dtype=np.uint8)
    arrays = memory(driver.alloc_pinned(24), 24).view(np.int64)
    arrays[:] = (device, (at(room) if pageable else host) + shift, 2)
    parameters = [ctypes.c_uint64(at(arrays) + 8 * i) for i in range(3)]
    kernel = driver.load_kernel(b"image", "copy_fragments")[1]
    driver.launch_kernel(kernel, 1, 32, 0, stream, [*parameters, ctypes.c_int32(1)])
    if code is None:
        driver.synchronize_stream(stream)
        assert memory(device, 17).tolist() == [0xCD] * 17
    else:
        with pytest.raises(DeviceError) as failed:
            driver.synchronize_stream(stream)
        assert (failed.value.code, failed.value.lost) == (code, True)


def test_memory_that_is_gone_is_an_illegal_address(driver: Driver, fake: Fake) -> None:
    stream, host = driver.create_stream(), driver.alloc_pinned(PAGE)
    gone = driver.alloc_device(PAGE)
    driver.free_device(gone)
    fake.adopt(gone, PAGE)
    driver.copy_one(host, gone, PAGE, stream)
    with pytest.raises(DeviceError) as failed:
        driver.synchronize_stream(stream)
    assert (failed.value.code, failed.value.lost) == (700, True)


def test_a_reset_ends_waits_and_leaves_nothing(driver: Driver, fake: Fake) -> None:
    context, stream, event = driver.retain_primary_context(0), driver.create_stream(), driver.create_event()
    room = np.zeros(2 * PAGE, dtype=np.uint8)
    driver.register(at(room), PAGE)
    fake.fail_next("cuEventCreate", 2)
    fake.hold(stream)
    driver.record_event(event, stream)

    def wait() -> int:
        driver.bind(context)
        with pytest.raises(DeviceError) as ended:
            driver.synchronize_event(event)
        return ended.value.code

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        while not fake.calls("cuEventSynchronize"):
            pass
        fake.reset()
        assert waiting.result() == 4
    kinds = ("streams", "stream_threads", "events", "contexts", "registrations", "queued_operations")
    assert [fake.count(kind) for kind in kinds] == [0] * 6
    with pytest.raises(DeviceError) as unbound:
        driver.create_event()
    assert unbound.value.code == 201
    driver.bind(driver.retain_primary_context(0))
    driver.destroy_event(driver.create_event())


def test_failures_come_when_they_are_told_to(driver: Driver, fake: Fake) -> None:
    fake.fail_next("cuEventCreate", 2, after=1, times=2)
    outcomes = []
    for _ in range(4):
        try:
            driver.create_event()
            outcomes.append(0)
        except DeviceError as error:
            outcomes.append(error.code)
    assert outcomes == [0, 2, 2, 0]


def test_the_log_tells_streams_copies_and_bytes(driver: Driver, fake: Fake) -> None:
    stream, host, device = driver.create_stream(), driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    dst, src = int64s(device, device + 64), int64s(host, host + 64)
    driver.copy_batch(dst, src, int64s(8, 9), stream, source_final=False)
    driver.synchronize_stream(stream)
    (operation,) = fake.executed()
    assert (operation.stream, operation.dst, operation.src) == (stream, device, host)
    assert (operation.copies, operation.nbytes) == (2, 17)
