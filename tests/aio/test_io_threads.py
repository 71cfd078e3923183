"""IOThreads: daemon threads, started when needed, replaceable when they hang."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.errors import ClosedError, InvalidArgument


def test_runs_calls_and_returns_results() -> None:
    with IOThreads(2) as threads:
        assert [threads.submit(pow, 2, n).result() for n in range(5)] == [1, 2, 4, 8, 16]


def test_raises_what_the_call_raised() -> None:
    with IOThreads(1) as threads, pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result()


def test_an_idle_thread_is_used_again() -> None:
    with IOThreads(8) as threads:
        gate = threading.Event()
        threads.submit(gate.wait)
        seen = set()
        for _ in range(20):
            seen.add(threads.submit(threading.get_ident).result())
            idle = threads.submit(lambda: None)
            idle.result()
        gate.set()
        assert threads.threads <= 8


def test_never_more_threads_than_allowed() -> None:
    with IOThreads(3) as threads:
        gate = threading.Event()
        futures = [threads.submit(gate.wait) for _ in range(20)]
        assert threads.threads == 3
        gate.set()
        assert all(future.result() for future in futures)
        assert threads.threads == 3


def test_all_threads_are_daemons() -> None:
    with IOThreads(1) as threads:
        assert threads.submit(lambda: threading.current_thread().daemon).result()


def test_a_hanging_thread_is_replaced_up_to_a_bound_and_leaves_when_it_returns() -> None:
    gate = threading.Event()
    running = [threading.Event(), threading.Event()]
    with IOThreads(1, max_given_up=1) as threads:

        def hang(which: int) -> None:
            running[which].set()
            gate.wait()

        first = threads.start(lambda: hang(0))
        assert running[0].wait(30)
        assert threads.give_up(first)
        assert not threads.give_up(first)
        assert threads.submit(lambda: 7).result() == 7
        second = threads.start(lambda: hang(1))
        assert running[1].wait(30)
        assert not threads.give_up(second)
        assert (threads.threads, threads.given_up) == (2, 1)
        waiting = threads.submit(lambda: 8)
        gate.set()
        assert waiting.result() == 8
    while threads.given_up:
        threading.Event().wait(0.001)
    assert threads.threads == 0


def test_calls_queued_behind_a_hanging_thread_run_once_it_is_given_up() -> None:
    gate, running = threading.Event(), threading.Event()
    with IOThreads(1) as threads:

        def hang() -> None:
            running.set()
            gate.wait()

        work = threads.start(hang)
        assert running.wait(30)
        queued = threads.submit(lambda: 7)
        assert threads.give_up(work)
        assert queued.result() == 7
        gate.set()


def test_a_finished_call_cannot_be_given_up() -> None:
    with IOThreads(1) as threads:
        work = threads.start(lambda: None)
        threads.submit(lambda: None).result()
        assert not threads.give_up(work)


def test_shutdown_lets_queued_calls_finish() -> None:
    threads = IOThreads(1)
    futures = [threads.submit(int, n) for n in range(10)]
    threads.shutdown()
    assert [future.result() for future in futures] == list(range(10))
    assert threads.threads == 0
    with pytest.raises(ClosedError):
        threads.submit(int)
    threads.shutdown()


def test_shutdown_can_cancel_what_is_queued() -> None:
    gate = threading.Event()
    threads = IOThreads(1)
    running = threads.submit(gate.wait)
    while not running.running():
        threading.Event().wait(0.001)
    queued = threads.submit(int)
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        queued.result()
    gate.set()
    threads.shutdown()
    assert running.result()


@pytest.mark.parametrize(("most", "given_up"), [(0, 0), (-1, 0), (1, -1)])
def test_refuses_impossible_bounds(most: int, given_up: int) -> None:
    with pytest.raises(InvalidArgument, match="max_threads >= 1"):
        IOThreads(most, max_given_up=given_up)


def test_the_interpreter_exits_with_a_thread_blocked() -> None:
    code = """
import os, threading
from asyncoffload.aio.io_threads import IOThreads
running = threading.Event()
reader, _ = os.pipe()
threads = IOThreads(1)
threads.submit(lambda: (running.set(), os.read(reader, 1)))
assert running.wait(30)
print("leaving", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "leaving\n"
