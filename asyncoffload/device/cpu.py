"""The CPU as a device: streams of batched copies, performed by threads, marked by events.

A *stream* keeps its copies in the order of submission; different streams run at once, as far as threads go round.
All threads share the pieces of the copies at the heads of the streams, so one large copy uses all of them. The
surface is that of CUDA streams and events; what a driver cannot do, withdrawing and stopping a copy, is added.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from asyncoffload.aio.under_way import count_in
from asyncoffload.core.coalesce import CopyBatch, coalesce
from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.batch_copy import MAX_COPIES_PER_CALL, BatchCopy, best_batch_copy
from asyncoffload.device.cpu_streams import Copy, CPUEvent, CPUStream
from asyncoffload.errors import ClosedError, InvalidArgument, TransferError

PIECE_BYTES = 16 << 20
"""The most a thread copies before it looks up: some milliseconds, the longest that a stop has to wait. Between pieces
the thread needs the GIL, which costs it 5 ms beside a thread that computes: much smaller pieces would be slow there."""

SHARED_PIECE_BYTES = 1 << 20
"""Copies of more than this are cut so that every thread has a piece."""


class CPUDevice:
    """Threads that perform the copies of any number of streams. They start with the first copy.

    Args:
        n_threads: threads, at least 1. All of them serve all streams.
        batch_copy: performs one piece; by default the best that this process may use.
        clock: seconds, for :attr:`Copy.ended_at`.

    Raises:
        InvalidArgument: fewer than one thread.
    """

    def __init__(
        self,
        n_threads: int = 2,
        *,
        batch_copy: BatchCopy | None = None,
        piece_bytes: int = PIECE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if n_threads < 1:
            raise InvalidArgument(f"copies need at least one thread, got {n_threads}")
        self._n_threads = n_threads
        self._batch_copy = batch_copy or best_batch_copy()
        self._piece_bytes = piece_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ends = threading.Condition(self._lock)
        self._streams: deque[CPUStream] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0  # threads that wait for work, or were woken a moment ago
        self._waking = False  # one of them was woken for new work, and has not looked yet
        self._closed = False
        self._batches = self._fragments = self._nbytes = 0
        count_in(self)

    def reaches(self, device: torch.device) -> bool:
        """Host memory, and no other."""
        return device.type == "cpu"

    @property
    def under_way(self) -> int:
        """Threads that copy, or are about to; any thread."""
        with self._lock:
            running = sum(copy._running for stream in self._streams for copy in stream._queue)
            waiting = sum(stream._head() is not None for stream in self._streams)
            return min(running + waiting, len(self._threads))

    def stream(self, name: str, direction: Direction = "load") -> CPUStream:  # noqa: ARG002 (all streams are alike)
        """A new stream; both directions are the same here."""
        stream = CPUStream(self, name)
        with self._lock:
            self._streams.append(stream)
        return stream

    def event(self) -> CPUEvent:
        """A new event, to be recorded in a stream."""
        return CPUEvent()

    def engines(self) -> Mapping[str, EngineCount]:
        """The one way of copying: ``copy_vectored``, ``copy_one_by_one``, or what was passed."""
        name = getattr(self._batch_copy, "__name__", type(self._batch_copy).__name__)
        return {name: EngineCount(self._batches, self._fragments, self._nbytes)}

    def close(self) -> None:
        """Withdraw what has not started and let the threads end; idempotent.

        Blocks until a thread that is inside a copy comes out of it: let the copies end first.
        """
        with self._lock:
            self._closed = True
            queued = [(stream, copy) for stream in self._streams for copy in stream._queue]
        for stream, copy in queued:
            self._stop(stream, copy)
        with self._lock:
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._threads)} threads"
        return f"CPUDevice({state}, {list(self._streams)})"

    def _submit(self, stream: CPUStream, batch: CopyBatch | Callable[[], CopyBatch], keep_alive: object) -> Copy:
        with self._lock:
            if self._closed:
                raise ClosedError("the device was closed")
            make_batch = (lambda: batch) if isinstance(batch, CopyBatch) else batch
            copy = Copy(stream._last.position + 1, make_batch, keep_alive)
            if stream._waits:
                copy._waiting_for = tuple(stream._waits)
                stream._waits.clear()
            stream._queue.append(copy)
            stream._last = copy
            if len(self._threads) < self._n_threads:
                self._start_threads()
            if self._idle and not self._waking:
                # One is enough for many copies: it wakes the next. A wake-up costs more than all else in this call.
                self._waking = True
                self._work.notify()
        return copy

    def _plan(self, make_batch: Callable[[], CopyBatch]) -> Sequence[CopyBatch]:
        """Cut a batch into pieces."""
        batch = make_batch()
        share = max(-(-batch.total_bytes // self._n_threads), SHARED_PIECE_BYTES)
        piece_bytes = min(share, self._piece_bytes)
        return coalesce(batch, piece_bytes=piece_bytes, piece_copies=MAX_COPIES_PER_CALL) or (batch,)

    def _start_threads(self) -> None:
        for index in range(len(self._threads), self._n_threads):
            thread = threading.Thread(target=self._serve, name=f"asyncoffload-copy-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _withdraw(self, stream: CPUStream, copy: Copy) -> bool:
        with self._lock:
            if copy.started or copy.ended:
                return False
            self._end(stream, copy)
            return True

    def _stop(self, stream: CPUStream, copy: Copy) -> None:
        with self._lock:
            copy._stopped = True
            if not copy._running and not copy.ended:
                self._end(stream, copy)

    def _join(self, copy: Copy) -> None:
        with self._lock:
            self._ends.wait_for(lambda: copy.ended)

    def _end(self, stream: CPUStream, copy: Copy) -> None:
        stream._queue.remove(copy)
        copy.ended_at = self._clock()
        copy.ended = True
        copy._keep_alive = copy._make_batch = None
        self._ends.notify_all()
        self._work.notify()

    def _serve(self) -> None:
        while self._serve_one():
            pass  # and between two turns this thread keeps nobody's memory alive

    def _serve_one(self) -> bool:
        turn = self._next_turn()
        if turn is None:
            return False
        stream, copy, piece = turn
        what, error, fragments, nbytes = "a copy", None, 0, 0
        try:
            if isinstance(piece, CopyBatch):
                fragments, nbytes = len(piece), piece.total_bytes
                what = f"a copy of {nbytes} bytes"
                self._batch_copy(piece)
            else:
                self._planned(stream, copy, self._plan(piece))
                return True
        except Exception as cause:
            # Whatever went wrong belongs to this copy alone: the thread serves the next one.
            error = TransferError(f"{what} failed: {cause}")
            error.__cause__ = cause
        self._piece_ended(stream, copy, error, fragments, nbytes)
        return True

    def _next_turn(self) -> tuple[CPUStream, Copy, CopyBatch | Callable[[], CopyBatch]] | None:
        """The next piece to copy, or the next batch to cut into pieces."""
        with self._lock:
            while True:
                for stream in self._streams:
                    copy = stream._head()
                    if copy is not None:
                        copy._running += 1
                        piece: CopyBatch | Callable[[], CopyBatch]
                        if copy._pieces is None:
                            assert copy._make_batch is not None
                            piece = copy._make_batch
                        else:
                            # The stream goes to the back, so that every stream gets its share of the threads.
                            self._streams.remove(stream)
                            self._streams.append(stream)
                            piece = copy._pieces[copy._given_out]
                            copy._given_out += 1
                        # Whoever takes a piece wakes one more thread if there is another piece: never a crowd.
                        if self._idle and any(other._head() for other in self._streams):
                            self._work.notify()
                        return stream, copy, piece
                if self._closed:
                    return None
                self._idle += 1
                self._work.wait()
                self._idle -= 1
                self._waking = False

    def _planned(self, stream: CPUStream, copy: Copy, pieces: Sequence[CopyBatch]) -> None:
        with self._lock:
            copy._running -= 1
            copy._pieces = pieces
            if copy._stopped and not copy.ended:
                self._end(stream, copy)

    def _piece_ended(
        self, stream: CPUStream, copy: Copy, error: TransferError | None, fragments: int, nbytes: int
    ) -> None:
        with self._lock:
            copy._running -= 1
            if error is None:
                copy._copied += 1
                self._batches += 1
                self._fragments += fragments
                self._nbytes += nbytes
            else:
                copy.error = copy.error or error
                copy._stopped = True
            if copy.ended or copy._running:
                return
            if copy._stopped or (copy._pieces is not None and copy._given_out == len(copy._pieces)):
                self._end(stream, copy)
