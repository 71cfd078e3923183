"""The loop thread: calls arrive, waiters are let go whatever happens, forks and exits are survived."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import InternalError, WrongLoopError

BEGIN = """
import asyncio, os, sys, threading, time
from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import InternalError, WrongLoopError

async def forever():
    await asyncio.Event().wait()

async def answer():
    return 42
"""


def run_script(script: str, *, warnings: str = "error") -> str:
    """Run a script in a Python of its own, which has to end well and without a word of complaint."""
    run = subprocess.run(
        [sys.executable, "-W", warnings, "-c", BEGIN + script], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.fixture
def own() -> Iterator[LoopThread]:
    """A loop that a test may ruin."""
    thread = LoopThread()
    yield thread
    thread.stop()


async def _answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def _fail() -> None:
    raise ValueError("no")


async def _forever() -> None:
    await asyncio.Event().wait()


def test_there_is_one_per_process() -> None:
    assert LoopThread.shared() is LoopThread.shared()
    assert LoopThread.shared().run(lambda: _answer(42)) == 42


def test_it_runs_on_uvloop_where_that_is_installed(own: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "uvloop" in repr(own)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    without = LoopThread()
    assert "asyncio" in repr(without)
    assert without.run(lambda: _answer(1)) == 1
    assert without.stop()


def test_a_loop_that_has_ended_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopThread, "_shared", None)
    first = LoopThread.shared()
    assert first.stop()
    second = LoopThread.shared()
    assert second is not first
    assert second.run(lambda: _answer(1)) == 1
    second.stop()


def test_posted_calls_are_made_in_order_and_on_the_loops_thread(own: LoopThread) -> None:
    seen: list[tuple[int, int]] = []
    done = threading.Event()
    for number in range(100):
        own.post(partial(lambda n: seen.append((n, threading.get_ident())), number))
    own.post(done.set)
    assert done.wait(30)
    assert [number for number, _ in seen] == list(range(100))
    assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})


def test_a_posted_call_that_fails_is_logged_and_costs_nobody_else(
    own: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    own.post(lambda: 1 // 0)
    assert own.run(lambda: _answer(7)) == 7
    assert "ZeroDivisionError" in caplog.text


def test_what_a_spawned_coroutine_raises_is_logged(own: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    own.post(lambda: own.spawn(_fail()))
    own.run(lambda: _answer(1))
    own.run(lambda: _answer(1))
    assert "ValueError: no" in caplog.text


def test_run_raises_what_the_coroutine_raises(own: LoopThread) -> None:
    with pytest.raises(ValueError, match="no"):
        own.run(_fail)


def test_many_threads_may_wait_at_once(own: LoopThread) -> None:
    answers: list[int] = []

    def ask(number: int) -> None:
        answers.append(own.run(lambda: _answer(number)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))


def test_past_its_timeout_run_raises_and_the_coroutine_is_cancelled(own: LoopThread) -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await _forever()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        own.run(wait, 0.01)
    assert cancelled.wait(30)


def test_the_loops_own_thread_is_told_not_to_wait_for_itself(own: LoopThread) -> None:
    async def wait() -> int:
        return own.run(lambda: _answer(1))

    with pytest.raises(WrongLoopError, match="await the coroutine"):
        own.run(wait)


def _die() -> None:
    raise SystemExit("killed by a test")


def test_when_the_thread_dies_everybody_who_waits_is_told(own: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            own.run(_forever)
        except InternalError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(own._waiting) < len(threads):
        own.run(lambda: _answer(1))
    own.post(_die)
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert isinstance(errors[0].__cause__, SystemExit)
    assert "killed by a test" in caplog.text


@pytest.mark.usefixtures("caplog")
def test_who_comes_after_the_thread_has_died_is_told_too(own: LoopThread) -> None:
    with pytest.raises(InternalError):
        own.run(lambda: _raise(SystemExit()))
    own._thread.join()
    for call in (own.check, lambda: own.post(print), lambda: own.run(_forever)):
        with pytest.raises(InternalError, match="has ended"):
            call()
    own.check_process()
    assert "ended" in repr(own)


async def _raise(error: BaseException) -> None:
    raise error


def test_stop_cancels_what_runs_and_lets_waiters_go(own: LoopThread) -> None:
    assert own.stop()
    assert own.loop.is_closed()
    with pytest.raises(InternalError, match="was stopped"):
        own.run(_forever)
    assert own.stop()


def test_stop_ends_also_when_the_work_does_not(own: LoopThread) -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    own.post(lambda: own.spawn(stubborn()))
    own.run(lambda: _answer(1))
    assert not own.stop(0.01)
    own.post(release.set)
    own._thread.join()


def test_importing_starts_nothing() -> None:
    assert run_script("import asyncoffload.sync; print(threading.active_count())") == "1\n"


def test_a_process_that_never_stops_its_loop_ends_all_the_same() -> None:
    script = """
loop = LoopThread.shared()
loop.post(lambda: loop.spawn(forever()))
print(loop.run(answer))
"""
    assert run_script(script) == "42\n"


def test_a_process_whose_loop_hangs_ends_all_the_same() -> None:
    script = """
from asyncoffload.aio import loop_thread
loop_thread.EXIT_SECONDS = 0.1
loop = LoopThread.shared()
print(loop.run(answer))
loop.post(lambda: time.sleep(1000))
"""
    assert run_script(script) == "42\n"


@pytest.mark.parametrize("child_ends_by", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_is_told_and_makes_a_loop_of_its_own(child_ends_by: str) -> None:
    script = f"""
inherited = LoopThread.shared()
inherited.run(answer)
LoopThread._sharing.acquire()
pid = os.fork()
if not pid:
    for call in (inherited.check, inherited.check_process, lambda: inherited.post(print),
                 lambda: inherited.run(answer)):
        try:
            call()
        except WrongLoopError as error:
            assert str(os.getpid()) in str(error) and str(os.getppid()) in str(error), error
            assert "make a new one" in str(error)
        else:
            os._exit(2)
    assert inherited.stop()
    assert LoopThread.shared() is not inherited
    assert LoopThread.shared().run(answer) == 42
    {child_ends_by}
LoopThread._sharing.release()
assert os.waitpid(pid, 0)[1] == 0
print(inherited.run(answer))
"""
    assert run_script(script, warnings="ignore::DeprecationWarning") == "42\n"


def test_an_interrupt_ends_the_waiting_at_once() -> None:
    script = """
loop = LoopThread.shared()
async def announce():
    print("waiting", flush=True)
    try:
        await forever()
    finally:
        cancelled.set()
cancelled = threading.Event()
try:
    loop.run(announce)
except KeyboardInterrupt:
    assert cancelled.wait(30)
    print("interrupted,", loop.run(answer))
"""
    run = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BEGIN + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored here
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "waiting\n"
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=60) == ("interrupted, 42\n", "")
    assert run.returncode == 0
