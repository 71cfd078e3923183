"""The driver's streams and events, on the fake device and on a real one where there is one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import DeviceError
from tests.device.cuda.fake import Fake, memory
from tests.device.cuda.machine import Machine, at, int64s

PAGE = 4096


def test_an_event_never_recorded_has_passed_and_holds_nothing_up(machine: Machine) -> None:
    driver, event = machine.driver, machine.driver.create_event()
    assert driver.query_event(event)
    driver.synchronize_event(event)
    driver.stream_wait_event(machine.stream, event)
    driver.synchronize_stream(machine.stream)
    driver.destroy_event(event)


def test_an_event_passes_when_what_it_marks_has_ended(driver: Driver, fake: Fake) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    fake.hold(stream)
    driver.record_event(event, stream)
    assert not driver.query_event(event)
    fake.step(stream)
    driver.synchronize_event(event)
    assert driver.query_event(event)
    driver.record_event(event, stream)
    assert not driver.query_event(event), "the last record counts"


def test_a_stream_waits_for_the_record_that_was_last_when_it_was_told(driver: Driver, fake: Fake) -> None:
    first, second, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    page, copy = driver.alloc_device(PAGE), driver.alloc_pinned(PAGE)
    memory(page, PAGE)[:] = 1
    fake.hold(first)
    fake.fill(first, page, PAGE, 2)
    driver.record_event(event, first)
    driver.stream_wait_event(second, event)
    driver.copy_one(copy, page, PAGE, second)
    driver.record_event(event, second)  # means nothing to what waits already
    fake.settle()
    assert not fake.executed()
    fake.release(first)
    driver.synchronize_event(event)
    assert (memory(copy, PAGE) == 2).all()


def test_a_stream_waits_for_the_work_of_another(machine: Machine) -> None:
    driver, other, event = machine.driver, machine.driver.create_stream(-1), machine.driver.create_event()
    page, copy, new = machine.on_device(PAGE, 0), machine.pinned(PAGE, 0), machine.pinned(PAGE)
    ballast, filler = machine.on_device(machine.slow_bytes), machine.on_device(machine.slow_bytes)
    for _ in range(4):
        driver.copy_one(ballast, filler, machine.slow_bytes, machine.stream)
    driver.copy_one(page, at(new), PAGE, machine.stream)
    driver.record_event(event, machine.stream)
    driver.stream_wait_event(other, event)
    driver.copy_one(at(copy), page, PAGE, other)
    driver.synchronize_stream(other)
    assert np.array_equal(copy, new)
    driver.destroy_event(event)
    driver.destroy_stream(other)


def test_what_waits_for_an_event_outlives_it(driver: Driver, fake: Fake) -> None:
    first, second, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    after = driver.create_event()
    fake.hold(first)
    driver.record_event(event, first)
    driver.stream_wait_event(second, event)
    driver.record_event(after, second)
    driver.destroy_event(event)
    fake.settle()
    assert not driver.query_event(after)
    fake.release(first)
    driver.synchronize_event(after)


def test_a_destroyed_stream_still_does_its_work(driver: Driver, fake: Fake) -> None:
    stream, page, event = driver.create_stream(), driver.alloc_device(8), driver.create_event()
    fake.hold(stream)
    fake.fill(stream, page, 8, 7)
    driver.record_event(event, stream)
    driver.destroy_stream(stream)
    assert fake.count("streams") == 0
    fake.release()
    driver.synchronize_event(event)
    assert (memory(page, 8) == 7).all()
    with pytest.raises(DeviceError) as refused:
        driver.destroy_stream(stream)
    assert refused.value.code == 400


@pytest.mark.parametrize("what", ["event", "stream"])
def test_waiting_leaves_the_interpreter_to_others(driver: Driver, fake: Fake, what: str) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    context, waits = driver.bind(0), threading.Event()
    driver.bind(context)
    fake.hold(stream)
    driver.record_event(event, stream)

    def wait() -> None:
        driver.bind(context)
        waits.set()
        driver.synchronize_event(event) if what == "event" else driver.synchronize_stream(stream)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        waits.wait()
        assert not driver.query_event(event)
        fake.release(stream)
        waiting.result()


def test_priorities_reach_the_driver(driver: Driver, fake: Fake) -> None:
    low, high, beyond = driver.create_stream(), driver.create_stream(-3), driver.create_stream(-99)
    assert fake.streams() == {low: 0, high: -3, beyond: -5}


def test_streams_of_many_threads_keep_their_order(driver: Driver, fake: Fake) -> None:
    context, rounds, n = driver.retain_primary_context(0), 50, 8

    def run(seed: int) -> None:
        driver.bind(context)
        streams, event = [driver.create_stream() for _ in range(2)], driver.create_event()
        host, device, back = driver.alloc_pinned(PAGE), driver.alloc_device(PAGE), driver.alloc_pinned(PAGE)
        for turn in range(rounds):
            memory(host, PAGE)[:] = (seed * rounds + turn) % 251
            driver.copy_batch(int64s(device), int64s(host), int64s(PAGE), streams[0], source_final=True)
            driver.record_event(event, streams[0])
            driver.stream_wait_event(streams[1], event)
            driver.copy_one(back, device, PAGE, streams[1])
            driver.record_event(event, streams[1])
            if turn % 2:
                driver.synchronize_event(event)
            while not driver.query_event(event):
                pass
            assert (memory(back, PAGE) == (seed * rounds + turn) % 251).all()
        for stream in streams:
            driver.destroy_stream(stream)
        driver.destroy_event(event)
        driver.free_pinned(host)
        driver.free_pinned(back)
        driver.free_device(device)

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(run, range(n)))
    kinds = ("streams", "events", "pinned_allocations", "device_allocations", "queued_operations")
    assert [fake.count(kind) for kind in kinds] == [0] * 5
