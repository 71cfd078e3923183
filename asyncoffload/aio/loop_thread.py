"""The event loop behind callers that have none: one daemon thread per process, shared by everybody who needs it."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

from asyncoffload.aio.mailbox import Mailbox
from asyncoffload.errors import InternalError, WrongLoopError

T = TypeVar("T")

EXIT_SECONDS = 2.0
"""How long the end of the interpreter waits for work that is running; what is queued is dropped at once."""

_log = logging.getLogger(__name__)


class LoopThread:
    """A daemon thread that runs one event loop, on uvloop where it is installed.

    Everybody uses :meth:`shared`; a loop of one's own is for tests and measurements. Nothing starts on import. A child
    made by ``fork`` has none of its parent's threads: there, every use of an inherited loop raises, and
    :meth:`shared` makes a new one.

    At the end of the interpreter, tasks that are left are cancelled and given two seconds. A task that does not end
    by then, because an operating system call under it hangs, does not hold up the exit.

    Attributes:
        loop: the event loop; do not stop it.
        alive: whether it runs, in this process: what :meth:`check` raises about, for callers who count nanoseconds.
    """

    _shared: ClassVar[LoopThread | None] = None
    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.loop = _new_event_loop()
        self.alive = True
        self._pid = os.getpid()
        self._fault: Callable[[], Exception] | None = None
        self._inherited = False
        self._stopping = self._winding_up = False
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: Mailbox[Callable[[], object]] = Mailbox(self._make_calls, self.loop)
        self._thread = threading.Thread(target=self._serve, name="asyncoffload-loop", daemon=True)
        _living.add(self)
        self._thread.start()

    def __repr__(self) -> str:
        state = "running" if self._fault is None else "inherited" if self._inherited else "ended"
        return f"<LoopThread {state}, {type(self.loop).__module__.split('.')[0]}, {len(self._waiting)} waiting>"

    @classmethod
    def shared(cls) -> LoopThread:
        """The loop of this process; started by the first call, and anew where the one before has ended."""
        with LoopThread._sharing:
            if LoopThread._shared is None or LoopThread._shared._fault is not None:
                LoopThread._shared = cls()
            return LoopThread._shared

    def check(self) -> None:
        """Make sure that the loop runs, in this process.

        Raises:
            WrongLoopError: this process was forked from the one whose loop it is.
            InternalError: the thread has ended.
        """
        if self._fault is not None:
            raise self._fault()

    def check_process(self) -> None:
        """Make sure that this process is the one whose loop it is.

        Raises:
            WrongLoopError: it was forked from it.
        """
        if self._inherited and self._fault is not None:
            raise self._fault()

    def post(self, call: Callable[[], object]) -> None:
        """Have something called on the loop's thread; any thread, returns at once.

        Calls posted in quick succession share one wake-up of the loop. What a call raises is logged.

        Raises:
            WrongLoopError, InternalError: as :meth:`check`.
        """
        self.check()
        self._calls.post(call)

    def run(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and block this thread, without the GIL, until it has ended.

        It costs two changes of threads, some 100 us: for start, drain and close.

        Args:
            make: called on the loop's thread; returns the coroutine.
            timeout: seconds after which the coroutine is cancelled, and left to end by itself.

        An exception in this thread meanwhile, such as ``KeyboardInterrupt``, does the same.

        Raises:
            TimeoutError: the coroutine had not ended; or it raised that.
            WrongLoopError: called on the loop's own thread, which would wait for itself; or as :meth:`check`.
            InternalError: the thread ended, before or meanwhile.
        """
        if threading.get_ident() == self._thread.ident:
            raise WrongLoopError("the loop's own thread cannot wait for itself: await the coroutine instead")
        self.check()  # before the lock, too: in a forked child a thread that is not there may hold it
        portal = _Portal(make)
        with self._lock:
            self.check()
            self._waiting.add(portal.answer)
        try:
            self._calls.post(portal.start)
            answer: T = portal.answer.result(timeout)
            return answer
        except BaseException:
            if not portal.answer.done():
                self._calls.post(portal.cancel)
            raise
        finally:
            self._waiting.discard(portal.answer)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine as a task that nobody waits for; the loop's thread. What it raises is logged.

        It never starts where the loop is being stopped.
        """
        if self._winding_up:
            work.close()
            return
        self._tasks.add(self.loop.create_task(self._see_through(work)))

    def stop(self, timeout: float = EXIT_SECONDS) -> bool:
        """Cancel what runs on the loop, and end the thread when all of it has ended; idempotent, any other thread.

        Returns:
            Whether the thread ended within ``timeout`` seconds. If not, it goes on trying.
        """
        if self._inherited:
            return True
        self._stopping = True
        self._calls.post(lambda: self.spawn(self._wind_up()))
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- on the loop's thread

    def _serve(self) -> None:
        cause: BaseException | None = None
        try:
            self.loop.run_forever()
        except BaseException as error:
            cause = error
        self._end(cause)

    def _end(self, cause: BaseException | None) -> None:
        if self._stopping and cause is None:
            text = "the loop was stopped: what needs it must be closed before"
            self.loop.close()
            _living.discard(self)  # otherwise it is kept, since threads may still post to its loop
        else:
            text = f"the loop's thread has ended, because of {cause!r}; what ran on it will never end"
            _log.critical("%s", text, exc_info=cause)
        with self._lock:
            self._fault = partial(_raised_from, InternalError, text, cause)
            self.alive = False
            waiting = [answer for answer in self._waiting if not answer.done()]
        for answer in waiting:
            answer.set_exception(self._fault())

    def _make_calls(self, calls: list[Callable[[], object]]) -> None:
        for call in calls:
            try:
                call()
            except Exception:  # one caller's mistake must not cost the others their loop
                _log.exception("a call posted to the loop failed: %r", call)

    async def _see_through(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except Exception:
            _log.exception("%r failed", work)
        finally:
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _wind_up(self) -> None:
        self._winding_up = True
        me = asyncio.current_task()
        # Those first that nobody waits for: to end, they may need others, such as the workers of a pool.
        while left := (self._tasks or asyncio.all_tasks()) - {me} or asyncio.all_tasks() - {me}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        self.loop.stop()

    # ---- in a forked child

    def _leave_to_parent(self) -> None:
        text = (
            f"this object's loop runs in process {self._pid}, not in {os.getpid()}, which was forked from it: "
            "make a new one after the fork"
        )
        self._inherited = True
        self._fault = partial(WrongLoopError, text)
        self.alive = False
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # nor will the child's exit end it


class _Portal:
    """A coroutine, and the future of another thread that waits for it."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.answer: Future[Any] = Future()
        self._make = make
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self.answer.set_result(await self._make())
        except (Exception, asyncio.CancelledError) as error:
            self.answer.set_exception(error)


def _raised_from(kind: type[Exception], text: str, cause: BaseException | None) -> Exception:
    error = kind(text)
    error.__cause__ = cause
    return error


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_living: set[LoopThread] = set()


def _after_fork_in_child() -> None:
    LoopThread._sharing = threading.Lock()  # the parent's may have been held by a thread that is not here
    LoopThread._shared = None
    for inherited in _living:  # which are kept: closing a loop here would act on what it shares with the parent's
        inherited._leave_to_parent()


def _at_exit() -> None:
    for thread in list(_living):
        thread.stop(EXIT_SECONDS)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
