"""Places where a test can hold up coroutines and threads, and see who is there."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType
from typing import Generic, Self, TypeVar

from asyncoffload.testing.held_threads import count_held

T = TypeVar("T")

REMEMBERED_ARRIVALS = 1024


class Gate(Generic[T]):
    """Holds up whoever comes by while it is shut: coroutines, threads, or both. It is open at first.

    The code under test passes (:meth:`passing`, :meth:`pass_in_thread`) and says what with; the test, on any thread,
    shuts and opens, and waits for those who arrive. ``with gate.shut():`` opens it whatever happens to the test.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._is_open = True
        self._grace = 0
        self._held: deque[_Held] = deque()
        self._arrivals: deque[T] = deque(maxlen=REMEMBERED_ARRIVALS)
        self._watching: list[_HeldCoroutine] = []

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._is_open else 'shut'}, {len(self._held)} waiting>"

    @property
    def waiting(self) -> int:
        """How many are held up now."""
        return len(self._held)

    @property
    def unseen(self) -> int:
        """How many came by since the gate was last shut that :meth:`arrival` has not told of."""
        return len(self._arrivals)

    @property
    def holds(self) -> bool:
        """Whether the next one to come by is held up."""
        return not self._is_open and not self._grace

    def shut(self, after: int = 0) -> Self:
        """Hold up whoever comes by from now on; earlier arrivals are forgotten. As a context manager: until its end.

        Args:
            after: how many still pass.
        """
        with self._lock:
            self._is_open, self._grace = False, after
            self._arrivals.clear()
        return self

    def open(self) -> None:
        """Let everybody pass, now and from now on; idempotent."""
        with self._lock:
            self._is_open = True
            self._release(len(self._held))

    def let_pass(self, count: int = 1) -> None:
        """Let those who have waited longest pass; the gate stays as it is. With fewer waiting: all of them."""
        with self._lock:
            self._release(min(count, len(self._held)))

    async def passing(self, what: T) -> None:
        """Pass, or wait until the test says so. Cancellation: leaves at once."""
        with self._lock:
            if self._passes(what):
                return
            held = _HeldCoroutine()
            self._held.append(held)
            self._tell()
        try:
            await held.released
        finally:
            with self._lock:
                if held in self._held:
                    self._held.remove(held)

    def pass_in_thread(self, what: T) -> None:
        """Pass, or block this thread until the test says so. Time on a virtual clock passes for a thread held here."""
        with self._lock:
            if self._passes(what):
                return
            held = _HeldThread()
            self._held.append(held)
            self._tell()
            held.begin()
        held.released.wait()

    async def arrival(self) -> T:
        """What the next one passes with who came by, or comes by, since the gate was last shut. Each is told once."""
        while True:
            with self._lock:
                if self._arrivals:
                    return self._arrivals.popleft()
                change = self._watch()
            await change.released

    async def reached(self, count: int = 1) -> None:
        """Wait until at least ``count`` are held up at the same time."""
        while True:
            with self._lock:
                if len(self._held) >= count:
                    return
                change = self._watch()
            await change.released

    def wait_reached(self, count: int = 1, timeout: float = 30.0) -> None:
        """As :meth:`reached`, for a test without an event loop: blocks.

        Raises:
            AssertionError: it lasted longer than ``timeout`` seconds.
        """
        with self._lock:
            reached = self._changed.wait_for(lambda: len(self._held) >= count, timeout)
        assert reached, f"{self!r}: {count} were expected within {timeout} seconds"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.open()

    def _passes(self, what: T) -> bool:
        self._arrivals.append(what)
        if self.holds:
            return False
        if not self._is_open:
            self._grace -= 1
        self._tell()
        return True

    def _release(self, count: int) -> None:
        for _ in range(count):
            self._held.popleft().release()

    def _watch(self) -> _HeldCoroutine:
        change = _HeldCoroutine()
        self._watching.append(change)
        return change

    def _tell(self) -> None:
        watching, self._watching = self._watching, []
        for change in watching:
            change.release()
        self._changed.notify_all()


class _HeldCoroutine:
    """A coroutine that waits on its own loop, to be released from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.released: asyncio.Future[None] = self._loop.create_future()

    def release(self) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self.released.done():
            self.released.set_result(None)


class _HeldThread:
    """A thread that waits. It counts as held until it is released, not until it runs again."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def begin(self) -> None:
        count_held(1)

    def release(self) -> None:
        count_held(-1)
        self.released.set()


_Held = _HeldCoroutine | _HeldThread
