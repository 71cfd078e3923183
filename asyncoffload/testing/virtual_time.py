"""An event loop on which time passes only when nothing else can happen, and then at once."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, TypeVarTuple

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.testing.gates import Gate
from asyncoffload.testing.held_threads import threads_at_work

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Ready = list[tuple[selectors.SelectorKey, int]]

DAY = 86_400.0
MANY_TURNS = 1_000
LOOK_SECONDS = 0.001
"""How often, in real time, the loop asks whether threads still work. No virtual time passes meanwhile."""


class TimeStandsStill(AssertionError):
    """Nothing happens any more, and nothing that the loop knows of will: the test would hang."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, for tests that would wait.

    When no callback is ready the clock jumps to the next timer, so an hour of ``asyncio.sleep`` or
    ``asyncio.timeout`` takes no time, and happens in the same order, at the same moments, each time. Pass
    :meth:`time` as ``clock=`` to what reads a clock, so that it lives in the same time.

    **Time stands still while threads work.** What a thread does takes no virtual time: the clock jumps only when
    nobody has anything to do. The loop knows of

    * calls by :meth:`run_in_executor`, whatever the executor, and ``asyncio.to_thread``, until they end: cancelling the
      future of one that runs does not end it;
    * the library's own I/O and copy threads, of the whole process. Which of several of them ends first is the operating
      system's choice: where that matters, give a tier one thread.

    So it does while somebody spins: code that does ``sleep(0)`` until a timer has struck waits for ever.

    A thread that a test holds (at a :class:`~asyncoffload.testing.Gate`, or in :meth:`block`) does not work, and time
    passes. Of other threads, of other processes and of what comes through sockets the loop knows nothing: their
    callbacks are served, but a timer that is set does not wait for them.

    Args:
        start: what the clock shows at first, in seconds.
        horizon: seconds of virtual time after which the test counts as hanging: something ticks on for ever.
        patience: seconds of real time without any progress after which the test counts as hanging.
    """

    def __init__(self, *, start: float = 0.0, horizon: float = DAY, patience: float = 20.0) -> None:
        self._now = start
        self._end = start + horizon
        self._horizon = horizon
        self._patience = patience
        self._calls: set[Future[Any]] = set()  # handed to executors and not ended; any thread
        self._busy_turns = 0  # since there was last nothing to do
        self._idle_at = time.monotonic()
        self._scheduled: list[asyncio.TimerHandle]  # the base class's own, as the next one
        self._default_executor: Executor | None
        super().__init__(_Selector(self._select))

    @classmethod
    def running(cls) -> Self:
        """The running loop, which is a virtual one.

        Raises:
            RuntimeError: it is not, or no loop runs.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, cls):
            raise RuntimeError(f"{loop!r} is no {cls.__name__}: mark the test with @pytest.mark.virtual_time")
        return loop

    def time(self) -> float:
        """Seconds of virtual time; any thread."""
        return self._now

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        if isinstance(executor, IOThreads):  # which are counted by themselves
            return super().run_in_executor(executor, func, *args)
        if self.is_closed():
            raise RuntimeError("the event loop is closed: it runs no more calls")
        if executor is None:
            executor = self._default_executor = self._default_executor or ThreadPoolExecutor()
        call = executor.submit(func, *args)
        future = asyncio.wrap_future(call, loop=self)
        # A cancelled asyncio future ends before its thread does. And whoever waits hears of the end first.
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return future

    def block(self, seconds: float) -> None:
        """Block the calling thread, which is not the loop's, for seconds of virtual time: ``sleep=loop.block``."""
        passed: Gate[None] = Gate()
        passed.shut()
        self.call_soon_threadsafe(self.call_later, seconds, passed.open)
        passed.pass_in_thread(None)

    def _working(self) -> int:
        return threads_at_work(len(self._calls))

    def _select(self, look: Callable[[float], Ready], timeout: float | None) -> Ready:
        """The selector's ``select``: what is ready, else let virtual time pass."""
        ready = look(0)
        if ready or (timeout is not None and timeout <= 0):
            self._check_for_spinning()
            return ready
        try:
            return self._wait_for_threads(look) or self._pass_time(look, timeout)
        finally:
            self._busy_turns, self._idle_at = 0, time.monotonic()

    def _check_for_spinning(self) -> None:
        self._busy_turns += 1
        if self._busy_turns > MANY_TURNS and self._scheduled and time.monotonic() - self._idle_at > self._patience:
            self._busy_turns, self._idle_at = 0, time.monotonic()
            raise TimeStandsStill(
                f"for {self._patience} seconds somebody always had something to do, so no timer struck; whoever "
                f"spins with sleep(0) until a time has come must wait instead. {self._tasks()}"
            )

    def _wait_for_threads(self, look: Callable[[float], Ready]) -> Ready:
        began = time.monotonic()
        while self._working():
            ready = look(LOOK_SECONDS)
            if ready:
                return ready
            if time.monotonic() - began > self._patience:
                raise TimeStandsStill(
                    f"{self._working()} threads work for {self._patience} seconds already; if the test holds them, let "
                    f"them wait at a Gate. {self._tasks()}"
                )
        return look(0)  # what a thread has reported between the last look and its end

    def _pass_time(self, look: Callable[[float], Ready], timeout: float | None) -> Ready:
        if timeout is None:
            ready = look(self._patience)  # a thread that the loop does not know, or a socket
            if not ready:
                raise TimeStandsStill(f"no timer is set, no thread works, and nothing happens. {self._tasks()}")
            return ready
        self._now = round(self._now + timeout, 9)
        if self._now > self._end:
            raise TimeStandsStill(
                f"{self._horizon} seconds have passed, and timers go on; where that is meant, set another horizon. "
                f"{self._tasks()}"
            )
        return []

    def _tasks(self) -> str:
        waiting = []
        for task in asyncio.all_tasks(self):
            frames = task.get_stack(limit=1)
            where = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
            waiting.append(f"{task.get_name()}{where}")
        return f"Waiting tasks: {', '.join(sorted(waiting)) or 'none'}"


class _Selector(selectors.DefaultSelector):
    """The system's selector, which asks the loop how to wait."""

    def __init__(self, wait: Callable[[Callable[[float], Ready], float | None], Ready]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> Ready:
        return self._wait(super().select, timeout)
