"""The driver's calls, through ctypes, on the fake device and on a real one where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import HOST_POINTER_USABLE, Driver
from asyncoffload.errors import DeviceError
from tests.device.cuda.fake import Fake, memory
from tests.device.cuda.machine import Machine, at, int64s

PAGE = 4096


def test_tells_its_version_and_devices(machine: Machine) -> None:
    driver = machine.driver
    assert driver.version >= 12000
    assert driver.device_count() >= 1
    assert driver.attribute(HOST_POINTER_USABLE, 0) in (0, 1)
    assert f"CUDA {driver.version // 1000}." in repr(driver)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_DEVICE") as refused:
        driver.attribute(HOST_POINTER_USABLE, 99)
    assert refused.value.code == 101
    assert not refused.value.lost


def test_a_thread_needs_a_context_and_gets_back_what_it_had(machine: Machine) -> None:
    driver = machine.driver

    def on_another_thread() -> tuple[int, int]:
        with pytest.raises(DeviceError, match=r"CUDA_ERROR_INVALID_CONTEXT.*bind a context") as refused:
            driver.create_event()
        assert refused.value.code == 201
        assert not refused.value.lost
        before = driver.bind(machine.context)
        driver.destroy_event(driver.create_event())
        return before, driver.bind(before)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(on_another_thread).result() == (0, machine.context)
    assert driver.bind(machine.context) == machine.context


def test_every_call_after_a_forgotten_bind_fails_with_201(driver: Driver) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    address = driver.alloc_device(64)
    one = int64s(address)
    calls: list[Callable[[], object]] = [
        lambda: driver.create_stream(),
        lambda: driver.stream_wait_event(stream, event),
        lambda: driver.is_capturing(stream),
        lambda: driver.synchronize_stream(stream),
        lambda: driver.record_event(event, stream),
        lambda: driver.query_event(event),
        lambda: driver.synchronize_event(event),
        lambda: driver.copy_batch(one, one, int64s(8), stream, source_final=False),
        lambda: driver.copy_one(address, address, 8, stream),
        lambda: driver.register(PAGE, PAGE),
        lambda: driver.unregister(PAGE),
        lambda: driver.alloc_device(8),
        lambda: driver.free_device(address),
        lambda: driver.alloc_pinned(8),
        lambda: driver.free_pinned(address),
        lambda: driver.load_kernel(b"image", "copy_fragments"),
        lambda: driver.destroy_event(event),
        lambda: driver.destroy_stream(stream),
    ]
    driver.bind(0)
    for call in calls:
        with pytest.raises(DeviceError) as refused:
            call()
        assert refused.value.code == 201


def test_binding_what_is_bound_asks_the_driver_for_no_change(driver: Driver, fake: Fake) -> None:
    context = driver.retain_primary_context(0)
    for _ in range(10):
        driver.bind(context)
    assert fake.calls("cuCtxSetCurrent") == 1


def test_two_devices_have_contexts_of_their_own(driver: Driver, fake: Fake) -> None:
    fake.set_devices(2)
    first, second = driver.retain_primary_context(0), driver.retain_primary_context(1)
    assert first != second
    driver.bind(second)
    event = driver.create_event()
    assert driver.bind(first) == second
    with pytest.raises(DeviceError) as refused:
        driver.record_event(event, driver.create_stream())
    assert refused.value.code == 400


def test_the_last_release_of_a_context_ends_what_is_in_it(driver: Driver, fake: Fake) -> None:
    driver.create_stream()
    driver.create_event()
    driver.alloc_device(64)
    driver.release_primary_context(0)
    kinds = ("contexts", "streams", "stream_threads", "events", "device_allocations")
    assert [fake.count(kind) for kind in kinds] == [0] * 5
    with pytest.raises(DeviceError) as refused:
        driver.create_event()
    assert refused.value.lost


# Memory


def test_registered_memory_is_pinned_once_and_let_go_by_its_own_address(machine: Machine) -> None:
    driver, room = machine.driver, np.zeros(5 * PAGE, dtype=np.uint8)
    host = -(-at(room) // PAGE) * PAGE
    driver.register(host, 2 * PAGE)
    with pytest.raises(DeviceError) as twice:
        driver.register(host, PAGE)
    assert twice.value.code == 712
    with pytest.raises(DeviceError) as inside:
        driver.unregister(host + PAGE)
    assert inside.value.code in (1, 713)
    driver.unregister(host)
    with pytest.raises(DeviceError) as gone:
        driver.unregister(host)
    assert gone.value.code in (1, 713)
    assert not any(error.value.lost for error in (twice, inside, gone))
    driver.register(host, PAGE)
    driver.unregister(host)


def test_memory_that_cannot_be_had(driver: Driver, fake: Fake) -> None:
    room = np.zeros(4 * PAGE, dtype=np.uint8)
    host = -(-at(room) // PAGE) * PAGE
    fake.limit_registration(one_call=2 * PAGE, total=3 * PAGE)
    with pytest.raises(
        DeviceError, match=r"cuMemHostRegister_v2 failed with 2, CUDA_ERROR_OUT_OF_MEMORY.*ask for less"
    ):
        driver.register(host, 3 * PAGE)
    driver.register(host, 2 * PAGE)
    with pytest.raises(DeviceError) as refused:
        driver.alloc_device(0)
    assert refused.value.code == 1
    assert fake.count("registered_bytes") == 2 * PAGE
    fake.fail_next("cuMemHostUnregister", 4)
    with pytest.raises(DeviceError):
        driver.unregister(host)
    assert fake.count("registrations") == 1
    driver.unregister(host)


def test_memory_is_given_back(driver: Driver, fake: Fake) -> None:
    device, pinned = driver.alloc_device(100), driver.alloc_pinned(200)
    assert (fake.count("device_bytes"), fake.count("pinned_bytes")) == (100, 200)
    driver.free_device(device)
    driver.free_pinned(pinned)
    assert (fake.count("device_allocations"), fake.count("pinned_allocations")) == (0, 0)
    with pytest.raises(DeviceError) as twice:
        driver.free_device(device)
    assert twice.value.code == 1


# Kernels


def test_a_kernel_reads_its_parameters_at_the_launch_and_its_arrays_when_it_runs(driver: Driver, fake: Fake) -> None:
    stream, device, host = driver.create_stream(), driver.alloc_device(64), driver.alloc_pinned(64)
    arrays = memory(driver.alloc_pinned(24), 24).view(np.int64)
    module, kernel = driver.load_kernel(b"image", "copy_fragments")
    memory(host, 64)[:] = 1
    parameters = [ctypes.c_uint64(at(arrays) + 8 * i) for i in range(3)]
    fake.hold(stream)
    driver.launch_kernel(kernel, 1, 128, 0, stream, [*parameters, ctypes.c_int32(1), ctypes.c_uint64(0)])
    parameters[0].value = 0
    arrays[:] = (device, host, 3)
    fake.release(stream)
    driver.synchronize_stream(stream)
    assert memory(device, 64).tolist() == [1] * 24 + [0xCD] * 40
    with pytest.raises(DeviceError, match="CUDA_ERROR_NOT_FOUND"):
        driver.load_kernel(b"image", "no_such_kernel")
    driver.unload_module(module)


# Errors


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        *((code, True) for code in (4, 214, 700, 702, 710, 719, 999)),
        *((code, False) for code in (1, 2, 201, 304, 400, 801, 901, 12345)),
    ],
)
def test_errors_tell_whether_the_device_is_lost(driver: Driver, fake: Fake, code: int, lost: bool) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    fake.fail_next("cuEventRecord", code)
    with pytest.raises(DeviceError, match=f"cuEventRecord failed with {code}, ") as refused:
        driver.record_event(event, stream)
    assert (refused.value.code, refused.value.lost) == (code, lost)
    driver.record_event(event, stream)


def test_errors_name_call_code_and_symbol(driver: Driver) -> None:
    with pytest.raises(DeviceError) as refused:
        driver.copy_one(0, 4096, 64, driver.create_stream())
    words = "cuMemcpyAsync (64 bytes from 0x1000 to 0x0) failed with 1, CUDA_ERROR_INVALID_VALUE: invalid argument"
    assert str(refused.value) == words


def test_what_fails_on_the_device_fails_every_call_from_then_on(driver: Driver, fake: Fake) -> None:
    stream, other, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    host, device = driver.alloc_pinned(PAGE), driver.alloc_device(PAGE)
    fake.fail_copy_to(device + 100, 719)
    fake.hold(stream)
    driver.copy_one(device, host, PAGE, stream)
    driver.record_event(event, stream)
    assert not driver.query_event(event)
    fake.release(stream)
    for call in (
        lambda: driver.synchronize_event(event),
        lambda: driver.query_event(event),
        lambda: driver.synchronize_stream(other),
        lambda: driver.copy_one(device, host, PAGE, other),
    ):
        with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED") as failed:
            call()
        assert (failed.value.code, failed.value.lost) == (719, True)


def test_libraries_that_are_no_driver() -> None:
    with pytest.raises(DeviceError, match=r"no_such_lib.*install the NVIDIA driver") as missing:
        Driver("libno_such_library.so.1")
    assert missing.value.code == 0
    with pytest.raises(DeviceError, match="does not export cuInit"):
        Driver("libc.so.6")


def test_a_machine_without_devices(fake: Fake) -> None:
    fake.set_devices(0)
    with pytest.raises(DeviceError, match=r"cuInit failed with 100, CUDA_ERROR_NO_DEVICE.*use the CPU device"):
        Driver(fake.library)
