"""The CPU as a device: streams of batched copies, performed by threads, marked by events.

A *stream* keeps its copies in the order of submission; different streams run at once, as far as threads go round.
All threads share the pieces of the copies at the heads of the streams, so one large copy uses all of them. The
surface is that of CUDA streams and events; what a driver cannot do, withdrawing and stopping a copy, is added.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from asyncoffload.core.coalesce import CopyBatch, coalesce
from asyncoffload.device.batch_copy import MAX_COPIES_PER_CALL, BatchCopy, best_batch_copy
from asyncoffload.errors import ClosedError, InvalidArgument, TransferError

PIECE_BYTES = 16 << 20
"""The most a thread copies before it looks up: some milliseconds, the longest that a stop has to wait. Between pieces
the thread needs the GIL, which costs it 5 ms beside a thread that computes: much smaller pieces would be slow there."""

SHARED_PIECE_BYTES = 1 << 20
"""Copies of more than this are cut so that every thread has a piece."""


class Copy:
    """A batch of copies in a stream.

    Attributes:
        position: its number in the stream, from 1.
        ended: nothing touches its memory any more, and nothing will.
        complete: every byte was copied.
        error: why a part of it failed.
        ended_at: seconds of the engine's clock, once ended.
    """

    def __init__(self, position: int, make_batch: Callable[[], CopyBatch] | None, keep_alive: object = None) -> None:
        self.position = position
        self.ended = False
        self.error: TransferError | None = None
        self.ended_at = 0.0
        self._waiting_for: tuple[tuple[CPUStream, int], ...] = ()
        self._make_batch = make_batch
        self._pieces: Sequence[CopyBatch] | None = None  # until a thread has planned them
        self._keep_alive = keep_alive
        self._given_out = 0
        self._copied = 0
        self._running = 0
        self._stopped = False

    @property
    def complete(self) -> bool:
        return self.ended and self._pieces is not None and self._copied == len(self._pieces)

    @property
    def started(self) -> bool:
        """Whether a thread was given any part of it to copy."""
        return self._given_out > 0

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"{self._copied} of {len(self._pieces or ()) or '?'} pieces"
        return f"Copy({self.position}, {state}{f', {self.error}' if self.error else ''})"


class CPUStream:
    """Copies one after the other, in the order of submission. Made by :meth:`CPUCopyEngine.stream`."""

    def __init__(self, engine: CPUCopyEngine, name: str) -> None:
        self.name = name
        self._engine = engine
        self._queue: deque[Copy] = deque()
        self._last = Copy(0, None)
        self._last.ended = True
        self._waits: list[tuple[CPUStream, int]] = []

    @property
    def position(self) -> int:
        """The number of the last copy submitted."""
        return self._last.position

    def copy(self, batch: CopyBatch | Callable[[], CopyBatch], *, keep_alive: object) -> Copy:
        """Queue a batch.

        Args:
            batch: what to copy. Nobody else may write the memory involved until the copy has ended. Or a function
                that tells: a thread of the engine calls it, and the caller is spared some tens of microseconds.
            keep_alive: owns that memory; referenced until the copy has ended.

        Raises:
            ClosedError: the engine was closed.
        """
        return self._engine._submit(self, batch, keep_alive)

    def wait_for(self, other: CPUStream, position: int) -> None:
        """What is submitted from now on starts after the copies of ``other`` up to ``position`` have ended."""
        self._waits.append((other, position))

    def withdraw(self, copy: Copy) -> bool:
        """Take a copy back if it has not started; it then has ended, incomplete. Returns whether that was so."""
        return self._engine._withdraw(self, copy)

    def stop(self, copy: Copy) -> None:
        """Withdraw the copy or, where it runs, let it end after the pieces that are running now."""
        self._engine._stop(self, copy)

    def __repr__(self) -> str:
        return f"CPUStream({self.name}, {len(self._queue)} of {self.position} copies to go)"

    def _has_passed(self, position: int) -> bool:
        return not self._queue or self._queue[0].position > position

    def _head(self) -> Copy | None:
        """The oldest copy if a thread may take a piece of it now."""
        if not self._queue:
            return None
        head = self._queue[0]
        if head._stopped or (head._running > 0 if head._pieces is None else head._given_out == len(head._pieces)):
            return None
        return head if all(stream._has_passed(position) for stream, position in head._waiting_for) else None


class CPUEvent:
    """A mark behind the last copy of a stream, with the surface of ``torch.cuda.Event``.

    It has passed when that copy has ended; a copy that was withdrawn ends at once, whatever lies before it.
    """

    def __init__(self) -> None:
        self._stream: CPUStream | None = None
        self._copy: Copy | None = None

    def record(self, stream: CPUStream) -> None:
        """Mark everything submitted to the stream so far."""
        self._stream, self._copy = stream, stream._last

    def query(self) -> bool:
        """Whether the marked copy has ended; True when nothing was recorded.

        Raises:
            TransferError: it has ended by failing.
        """
        copy = self._copy
        if copy is None:
            return True
        if copy.ended and copy.error is not None:
            raise copy.error
        return copy.ended

    def synchronize(self) -> None:
        """Block the thread, without the GIL, until the marked copy has ended.

        Raises:
            TransferError: it has ended by failing.
        """
        if self._stream is not None and self._copy is not None:
            self._stream._engine._join(self._copy)
        self.query()

    def wait(self, stream: CPUStream) -> None:
        """Make what is submitted to ``stream`` from now on start after the marked copy."""
        if self._stream is not None and self._copy is not None:
            stream.wait_for(self._stream, self._copy.position)

    def __repr__(self) -> str:
        return f"CPUEvent({self._copy!r})"


class CPUCopyEngine:
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

    def stream(self, name: str) -> CPUStream:
        """A new stream."""
        stream = CPUStream(self, name)
        with self._lock:
            self._streams.append(stream)
        return stream

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
        return f"CPUCopyEngine({state}, {list(self._streams)})"

    def _submit(self, stream: CPUStream, batch: CopyBatch | Callable[[], CopyBatch], keep_alive: object) -> Copy:
        with self._lock:
            if self._closed:
                raise ClosedError("the copy engine was closed")
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
        what, error = "a copy", None
        try:
            if isinstance(piece, CopyBatch):
                what = f"a copy of {piece.total_bytes} bytes"
                self._batch_copy(piece)
            else:
                self._planned(stream, copy, self._plan(piece))
                return True
        except Exception as cause:
            # Whatever went wrong belongs to this copy alone: the thread serves the next one.
            error = TransferError(f"{what} failed: {cause}")
            error.__cause__ = cause
        self._piece_ended(stream, copy, error)
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

    def _piece_ended(self, stream: CPUStream, copy: Copy, error: TransferError | None) -> None:
        with self._lock:
            copy._running -= 1
            if error is None:
                copy._copied += 1
            else:
                copy.error = copy.error or error
                copy._stopped = True
            if copy.ended or copy._running:
                return
            if copy._stopped or (copy._pieces is not None and copy._given_out == len(copy._pieces)):
                self._end(stream, copy)
