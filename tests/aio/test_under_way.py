"""The library's threads are counted from the moment they are given work until it has been reported."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.under_way import threads_under_way
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cpu import CPUDevice


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_threads_with_work_are_counted_and_no_queued_calls(calls: int) -> None:
    before, threads, go_on = threads_under_way(), IOThreads(2), threading.Event()
    futures = [threads.submit(go_on.wait) for _ in range(calls)]
    assert threads.under_way == min(calls, 2)
    assert threads_under_way() == before + threads.under_way
    go_on.set()
    for future in futures:
        future.result(30)
    threads.shutdown()
    assert threads.under_way == 0
    assert threads_under_way() == before


def test_a_thread_that_was_given_up_counts_until_it_comes_back_and_dropped_calls_do_not() -> None:
    threads, begun, stuck, go_on = IOThreads(1), threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        stuck.wait()

    work = threads.start(hang)
    assert begun.wait(30)
    assert threads.give_up(work)
    assert threads.under_way == 1
    running = threads.submit(go_on.wait)
    queued = threads.submit(go_on.wait)
    assert threads.under_way == 2
    threads.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled() or running.cancelled()
    go_on.set()
    stuck.set()
    for thread in list(threads._threads):
        thread.join(30)
    assert threads.under_way == 0


def test_copies_are_counted_by_the_threads_they_keep_busy() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def copy(_: CopyBatch) -> None:
        begun.release()
        assert go_on.wait(30)

    device = CPUDevice(2, batch_copy=copy)
    streams = [device.stream(name) for name in "abc"]
    nothing = np.zeros(1, np.int64)
    batch = CopyBatch(nothing, nothing, nothing)
    copies = [stream.copy(batch, keep_alive=None) for stream in streams]
    assert device.under_way in (1, 2)
    assert begun.acquire(timeout=30)
    assert begun.acquire(timeout=30)
    assert device.under_way == 2
    go_on.set()
    for each in copies:
        device._join(each)
    device.close()
    assert device.under_way == 0
