"""From the queues into the threads and back: the workers of the pool."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from functools import partial

from asyncoffload.aio.durations import Durations
from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.lane import Lane
from asyncoffload.aio.mailbox import Mailbox
from asyncoffload.aio.slices import Slice
from asyncoffload.types.vocabulary import Priority

_QUIET = 1.0  # seconds without a load after which stores may have the device for themselves
_SHARE_BESIDE_LOADS = 0.25  # of the bytes that may be written at the same time otherwise


class Dispatcher:
    """Workers that take slices out of two lanes, each keeping one thread busy.

    One semaphore counts the entries of both lanes, so a worker waits for that and for nothing else: it never waits on
    two queues at once, and between its permit and the slice it owns there is no await at which either could get lost.

    Stores are held back while too many of them run, and sooner while loads come: a read that arrives behind 16 MiB of
    writes waits for all of them. A permit whose store may not run yet is put aside and comes back when one has ended.

    Args:
        loads, stores: the two lanes.
        n_read, n_write: workers that look into ``loads`` first, and into ``stores`` first.
        max_storing: stores that run at the same time.
        max_storing_bytes: bytes of blocks being written at the same time, a quarter of that until a second has passed
            without loads; one block always may.
        max_given_up: how many hanging threads may be replaced.
        ended: called on the loop's thread with slices whose tasks have all been counted.
        clock: seconds.

    Attributes:
        threads: what runs the slices.
        waits: by priority, how long slices were queued before they ran.
    """

    def __init__(
        self,
        loads: Lane,
        stores: Lane,
        *,
        n_read: int,
        n_write: int,
        max_storing: int,
        max_storing_bytes: int,
        max_given_up: int,
        ended: Callable[[list[Slice]], None],
        clock: Callable[[], float],
    ) -> None:
        self._loads = loads
        self._stores = stores
        self._n_read = n_read
        self._n_workers = n_read + n_write
        self._max_storing = max_storing
        self._max_storing_bytes = max_storing_bytes
        self._ended = ended
        self._clock = clock
        self.waits = {priority: Durations() for priority in Priority}
        self.threads = IOThreads(self._n_workers, max_given_up=max_given_up)
        self._workers: list[asyncio.Task[None]] = []
        self._post: Callable[[Slice], None]  # set with the mailbox, when the loop is known
        self._permits = asyncio.Semaphore(0)
        self._held_back = 0  # permits put aside; never more than stores are queued
        self._storing = 0
        self._storing_bytes = 0
        self._last_load = -math.inf
        self._running: dict[Slice, Lane] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the workers; on the loop's thread."""
        self._post = Mailbox(self._deliver, loop).post
        for index in range(self._n_workers):
            order = (self._loads, self._stores) if index < self._n_read else (self._stores, self._loads)
            # Workers stay, the request that happened to come first does not: they start with a context of their own.
            self._workers.append(loop.create_task(self._work(*order), context=contextvars.Context()))

    async def stop(self) -> None:
        """Let the workers and the threads go. What still runs comes home all the same, but nothing new starts."""
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        self.threads.shutdown(wait=False)

    def entry_added(self) -> None:
        """Account for one more entry in a lane."""
        self._permits.release()

    def give_up(self, older_than: float) -> list[Slice]:
        """See :meth:`DualQueueThreadPool.give_up`; returns the slices that are in such a call."""
        latest = self._clock() - older_than
        stuck = [piece for piece in self._running if piece.call_began < latest]
        for piece in stuck:
            if piece.released is not None and piece.work is not None and self.threads.give_up(piece.work):
                self._release(piece)
        return stuck

    def lacks_threads(self, older_than: float) -> bool:
        """See :meth:`DualQueueThreadPool.lacks_threads`."""
        latest = self._clock() - older_than
        return any(piece.released is not None and piece.call_began < latest for piece in self._running)

    async def _work(self, first: Lane, second: Lane) -> None:
        while True:
            await self._permits.acquire()
            busy = self._take(first, second)
            if busy is not None:
                await busy

    def _take(self, first: Lane, second: Lane) -> asyncio.Future[None] | None:
        for lane in (first, second):
            if lane.entries.empty() or (lane is self._stores and not self._may_store()):
                continue
            piece, was_cut = lane.take(self._n_workers)
            if was_cut:
                self.entry_added()
            busy = None if piece is None else self._run(piece, lane)
            self._let_store_in()
            return busy
        self._held_back += 1
        return None

    def _may_store(self) -> bool:
        if not self._storing:
            return True
        loading = self._loads.running or self._clock() - self._last_load < _QUIET
        share = _SHARE_BESIDE_LOADS if loading else 1.0
        return self._storing < self._max_storing and self._storing_bytes < share * self._max_storing_bytes

    def _let_store_in(self) -> None:
        # One at a time: whoever takes a store calls this again, so a burst does not wake workers in vain.
        if self._held_back and (self._may_store() or self._held_back > self._stores.entries.qsize()):
            self._held_back -= 1
            self._permits.release()

    def _run(self, piece: Slice, lane: Lane) -> asyncio.Future[None]:
        lane.running += 1
        self._running[piece] = lane
        piece.started = self._clock()
        self.waits[piece.priority].add(piece.started - piece.queued_at)
        if lane is self._stores:
            self._storing += 1
            self._storing_bytes += piece.task_bytes
        else:
            self._last_load = piece.started
        piece.released = busy = asyncio.get_running_loop().create_future()
        try:
            piece.work = self.threads.start(partial(self._run_in_thread, piece))
        except RuntimeError as error:  # the system has no thread left to give
            piece.fail(error)
            self._post(piece)
        return busy

    def _run_in_thread(self, piece: Slice) -> None:
        piece.run(self._clock)
        self._post(piece)

    def _deliver(self, pieces: list[Slice]) -> None:
        for piece in pieces:
            self._release(piece)
            self._running.pop(piece).running -= 1
        self._ended(pieces)

    def _release(self, piece: Slice) -> None:
        """The worker may go on; idempotent, since a thread that was given up may come back."""
        if piece.released is None:
            return
        if not piece.released.done():
            piece.released.set_result(None)
        piece.released = None
        if self._running[piece] is self._stores:
            self._storing -= 1
            self._storing_bytes -= piece.task_bytes
        self._let_store_in()
