"""Threads for blocking I/O that nothing ever has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Generic, ParamSpec, TypeVar

from asyncoffload.aio.under_way import count_in
from asyncoffload.errors import ClosedError, InvalidArgument

P = ParamSpec("P")
T = TypeVar("T")

MAX_GIVEN_UP = 4
"""Threads that may hang while others do their work: each keeps its memory, and a disk that answers hangs rarely."""


class Work:
    """One call on its way through :class:`IOThreads`."""

    __slots__ = ("call", "finished", "thread")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call
        self.thread: threading.Thread | None = None
        self.finished = False


class Submitted(Work, Generic[T]):
    """One that says what came of it."""

    __slots__ = ("future",)

    def __init__(self, call: Callable[[], object], future: Future[T]) -> None:
        super().__init__(call)
        self.future = future


class IOThreads(Executor):
    """An executor of daemon threads, started as they are needed.

    The interpreter joins the threads of a ``ThreadPoolExecutor`` when it exits, and so never exits while one hangs in
    a system call on a dead file server. Nothing joins these. One that is known to hang can be given up: another takes
    its place at once, and the old one leaves if its call ever returns.

    Args:
        max_threads: how many threads work at the same time.
        max_given_up: how many given-up threads may hang at the same time, beside the others.
        name: prefix of the threads' names.
    """

    def __init__(self, max_threads: int, *, max_given_up: int = MAX_GIVEN_UP, name: str = "asyncoffload-io") -> None:
        if max_threads < 1 or max_given_up < 0:
            raise InvalidArgument(
                f"I/O threads need max_threads >= 1 and max_given_up >= 0, got {max_threads} and {max_given_up}"
            )
        self.max_threads = max_threads
        self.max_given_up = max_given_up
        self._name = name
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._given_up: set[threading.Thread] = set()
        self._spare = 0  # idle threads less queued calls: negative when calls wait for a thread
        self._serial = 0
        self._closed = False
        count_in(self)

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return (
            f"<IOThreads {self._name!r} {state}{self.threads} of {self.max_threads} threads, {self.given_up} given up>"
        )

    @property
    def threads(self) -> int:
        """Threads alive, given-up ones included."""
        return len(self._threads)

    @property
    def given_up(self) -> int:
        """Given-up threads that have not come back."""
        return len(self._given_up)

    @property
    def under_way(self) -> int:
        """Threads that work or are about to, given-up ones included; any thread."""
        with self._lock:
            return self.threads - max(0, self._spare)

    def start(self, call: Callable[[], object]) -> Work:
        """Run ``call()`` in a thread and forget about it; never blocks. ``call`` must not raise.

        Raises:
            ClosedError: after :meth:`shutdown`.
            RuntimeError: a thread is needed, and the system refuses to give one.
        """
        return self._start(Work(call))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As ``Executor.submit``, for ``loop.run_in_executor`` and the like."""
        return self.begin(partial(fn, *args, **kwargs)).future

    def begin(self, fn: Callable[[], T]) -> Submitted[T]:
        """As :meth:`submit`, for those who may give the call up."""
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn())
                except BaseException as error:
                    future.set_exception(error)

        work = Submitted(call, future)
        self._start(work)
        return work

    def give_up(self, work: Work) -> bool:
        """Stop counting on the thread that runs ``work``, and start another in its place; any thread.

        Returns:
            False when the call is not running, is given up already, or too many threads are given up.
        """
        with self._lock:
            thread = work.thread
            if thread is None or work.finished or thread in self._given_up or self.given_up >= self.max_given_up:
                return False
            self._spawn()
            self._spare += 1
            self._given_up.add(thread)
            if self._closed:
                self._queue.put(None)
            return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no new calls and let the threads go when the queued ones are done.

        Args:
            wait: block until the threads that are not given up have ended.
            cancel_futures: drop the calls that no thread has started, and cancel their futures.
        """
        dropped: list[Work] = []
        with self._lock:
            threads = self._threads - self._given_up
            if cancel_futures:
                while not self._queue.empty():
                    work = self._queue.get_nowait()
                    if work is not None:
                        dropped.append(work)
                self._spare += len(dropped)
            if not self._closed or cancel_futures:
                for _ in threads:
                    self._queue.put(None)
            self._closed = True
        for work in dropped:
            if isinstance(work, Submitted):
                work.future.cancel()
        if wait:
            for thread in threads:
                thread.join()

    def _start(self, work: Work) -> Work:
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self!r} takes no new calls")
            if self._spare > 0 or self.threads - self.given_up >= self.max_threads:
                self._spare -= 1
            else:
                self._spawn()  # its idleness and this call cancel out
            self._queue.put(work)
        return work

    def _spawn(self) -> None:
        self._serial += 1
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._serial}", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _serve(self) -> None:
        me = threading.current_thread()
        while (work := self._queue.get()) is not None:
            work.thread = me
            call, work.call = work.call, None
            assert call is not None
            call()
            del call  # an idle thread keeps nobody's memory alive
            with self._lock:
                work.finished = True
                if me in self._given_up:
                    break
                self._spare += 1
            del work
        with self._lock:
            if me not in self._given_up:
                self._spare -= 1
            self._given_up.discard(me)
            self._threads.discard(me)
