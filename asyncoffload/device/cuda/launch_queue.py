"""What a stream has to launch, and what of it the driver has.

The driver runs what it was given, in order, and nothing can be taken back from it. So it gets little at a time, a
*window* of bytes, and the rest is kept: :mod:`~asyncoffload.device.cuda.feeder` launches it as earlier pieces end. At
any time one thread at most launches into a stream, a submitter or the feeder: it has the *turn*, and calls the driver
without a lock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.copy import CudaCopy, Piece
from asyncoffload.device.cuda.feeder import Feeder
from asyncoffload.device.cuda.pools import Mark
from asyncoffload.device.cuda.shared import Leftovers, Shared
from asyncoffload.device.cuda.window import Window
from asyncoffload.errors import DeviceError

_FIRST_PRIORITY: Final = -5
"""More urgent than any the driver knows, which takes it for its most urgent: kernels that copy are small, and would
wait for whole kernels of the model."""


class LaunchQueue:
    """The copies of one stream between submission and their end. From any thread.

    Args:
        name, direction: of the stream.
    """

    def __init__(self, shared: Shared, name: str, direction: Direction) -> None:
        self._shared = shared
        self._direction: Direction = direction
        with shared.bound():
            self._handle = shared.driver.create_stream(_FIRST_PRIORITY)
            try:
                shared.launcher.prepare(self._handle, direction)
            except BaseException:
                shared.driver.destroy_stream(self._handle)
                raise
        self._to_launch: deque[CudaCopy] = deque()
        self._waits: dict[LaunchQueue, int] = {}  # of the next copy
        self._turn_taken = False
        self._launching: Piece | None = None
        self._window = Window(shared.window_bytes)
        self._source_in_doubt: CudaCopy | None = None  # until it has ended, what copies read may still be written
        self._feeder = Feeder(self, shared, name)
        with shared.lock:
            shared.queues.append(self)

    def __repr__(self) -> str:
        window = self._window
        return f"{len(self._to_launch)} copies to launch, {len(window)} pieces of {window.nbytes} bytes launched"

    # Submission

    def push(self, copy: CudaCopy) -> bool:
        """Queue a copy behind the waits made so far. The lock is held.

        Returns:
            Whether the calling thread has got the turn, and has to call :meth:`launch_ready`.
        """
        copy._after, self._waits = self._waits, {}
        turn = self._shared.pinned and not self._turn_taken and not self._to_launch
        self._to_launch.append(copy)
        if turn:
            self._turn_taken = True
        elif not self._turn_taken:  # else who has the turn calls
            self._feeder.call()
        return turn

    def wait_for(self, other: LaunchQueue, position: int) -> None:
        """The next copy starts after those of another queue up to a position."""
        if other is not self and position > 0:
            with self._shared.lock:
                self._waits[other] = max(position, self._waits.get(other, 0))

    def withdraw(self, copy: CudaCopy) -> bool:
        """End a copy if nothing of it was launched; returns whether that was so."""
        leftovers = Leftovers()
        with self._shared.lock:
            if copy.started or copy._over:
                return False
            self._cut(copy, leftovers)
        leftovers.let_go()
        return True

    def stop(self, copy: CudaCopy) -> None:
        """Launch nothing more of a copy."""
        leftovers = Leftovers()
        with self._shared.lock:
            if not copy._over:
                self._cut(copy, leftovers)
        leftovers.let_go()

    # Launching

    def launch_ready(self) -> None:
        """Launch what may be launched now, and leave the rest to the feeder. The caller has the turn, and loses it.

        One window at most: where copies end as fast as they are launched, a submitter would never come to an end.
        """
        shared, launched = self._shared, 0
        try:
            while launched < shared.window_bytes:
                with shared.lock:
                    piece = self._next_piece()
                    full = self.oldest_in_the_way()
                if piece is not None:
                    launched += piece.nbytes
                    self._launch(piece)
                elif full is None or not self.has_ended(full):
                    break
        finally:
            with shared.lock:
                self._turn_taken = False
                if self._to_launch:
                    self._feeder.call()
                shared.changed.notify_all()

    def _next_piece(self) -> Piece | None:
        """The piece that may be launched now, as launched. The lock is held."""
        if not self._to_launch or self.is_blocked() or self.oldest_in_the_way() is not None:
            return None
        copy = self._to_launch[0]
        batch, nbytes = copy._to_go.popleft()
        if not copy._to_go:
            self._to_launch.popleft()
        after: dict[LaunchQueue, int] = {}
        behind: list[Mark] = []
        if not copy.started:
            copy.started = True
            for other, position in copy._after.items():
                if (mark := other._window.mark_up_to(position)) is not None:
                    behind.append(self._shared.marks.share(mark))
                    self._source_in_doubt = copy
            if copy._before is not None:
                behind.append(copy._before)
            after, copy._after, copy._before = copy._after, {}, None
        in_doubt = self._source_in_doubt is not None and not self._source_in_doubt._over
        final = self._direction == "load" and not in_doubt
        piece = Piece(copy, batch, nbytes, after=after, behind=behind, source_final=final)
        copy._running += 1
        self._window.nbytes += nbytes
        self._launching = piece
        return piece

    def is_blocked(self) -> bool:
        """Whether the copy to launch next has to wait until another stream has launched. The lock is held."""
        return any(not other.has_launched(position) for other, position in self._to_launch[0]._after.items())

    def oldest_in_the_way(self) -> Piece | None:
        """The piece whose end is awaited where the window has no room for the next one. The lock is held."""
        return self._window.in_the_way_of(self._to_launch[0]._to_go[0][1]) if self._to_launch else None

    def has_launched(self, position: int) -> bool:
        """Whether nothing up to a position is still to be launched. The lock is held."""
        launching = self._launching
        return (not self._to_launch or self._to_launch[0].position > position) and (
            launching is None or launching.copy.position > position
        )

    def _launch(self, piece: Piece) -> None:
        """Give a piece to the driver; whatever fails, fails its copy alone."""
        shared, failure = self._shared, None
        mark: Mark | None = None
        try:
            mark = shared.marks.take()
            for earlier in piece.behind:
                shared.driver.stream_wait_event(self._handle, earlier.handle)
            piece.after = {}
            if piece.nbytes and piece.batch is not None:
                piece.reservation = shared.launcher.launch(
                    piece.batch, self._handle, direction=self._direction, source_final=piece.source_final
                )
        except BaseException as cause:
            failure = cause
        # Also behind what has failed: some of it may have been queued.
        if mark is not None and not self._record(mark):
            mark = None
        self._settle(piece, mark, failure)
        if isinstance(failure, DeviceError) and failure.lost:
            shared.lose(failure)
        elif failure is not None and not isinstance(failure, Exception):
            raise failure

    def _record(self, mark: Mark) -> bool:
        """Mark what was launched. If the driver refuses, wait until it has ended: then there is nothing to mark."""
        shared = self._shared
        try:
            shared.driver.record_event(mark.handle, self._handle)
        except DeviceError:
            try:
                shared.driver.synchronize_stream(self._handle)
            except DeviceError as error:
                shared.lose(error)
            shared.marks.give_back(mark)
            return False
        return True

    def _settle(self, piece: Piece, mark: Mark | None, failure: BaseException | None) -> None:
        """Enter a piece among the launched ones. Without a mark nothing of it runs."""
        shared, copy, leftovers = self._shared, piece.copy, Leftovers()
        with shared.lock:
            self._launching = None
            piece.batch = None
            piece.mark = mark
            for earlier in piece.behind:
                shared.marks.give_back(earlier)
            piece.behind = ()
            if failure is not None:
                copy.error = copy.error or piece.launch_error(failure)
                self._cut(copy, leftovers)
                self._pass_on(piece.after, 0)
            if mark is not None and shared.lost is None:
                copy._last = piece
                self._window.add(piece)
            else:
                self._piece_over(piece, leftovers)
            shared.changed.notify_all()
        leftovers.let_go()

    # Ends

    def has_ended(self, piece: Piece, *, block: bool = False) -> bool:
        """Ask whether a launched piece has ended, or block until it has; what ended before it is noticed, too."""
        shared = self._shared
        with shared.lock:
            if piece.over or piece.mark is None:
                return piece.over
            mark = shared.marks.share(piece.mark)
        try:
            with shared.bound():
                if block:
                    shared.driver.synchronize_event(mark.handle)
                elif not shared.driver.query_event(mark.handle):
                    return False
        except DeviceError as error:
            shared.lose(error)
            return True
        finally:
            shared.marks.give_back(mark)
        leftovers = Leftovers()
        with shared.lock:
            while not piece.over:
                self._piece_over(self._window.pop(), leftovers)
            shared.changed.notify_all()
        leftovers.let_go()
        return True

    def look(self, copy: CudaCopy) -> None:
        """Ask the device whether the copy has ended, if that is possible."""
        with self._shared.lock:
            piece = self._end_of(copy)
        if piece is not None:
            self.has_ended(piece)

    def join(self, copy: CudaCopy) -> None:
        """Block the thread, without the GIL, until the copy has ended."""
        piece: Piece | None
        while True:
            with self._shared.lock:
                piece = self._wait_for_launch(copy)
            if piece is None:
                return
            self.has_ended(piece, block=True)

    def mark_behind(self, copy: CudaCopy) -> Mark | None:
        """Block the thread until all of the copy is launched; a share in the mark behind it.

        None if it has ended, or some of it could not be launched.
        """
        with self._shared.lock:
            piece = self._wait_for_launch(copy)
            return None if piece is None or piece.mark is None else self._shared.marks.share(piece.mark)

    def _wait_for_launch(self, copy: CudaCopy) -> Piece | None:
        """Block until all of the copy is launched; returns the last piece, or None if it has ended. Lock held."""
        self._shared.changed.wait_for(lambda: copy._over or self._end_of(copy) is not None)
        return self._end_of(copy)

    def _end_of(self, copy: CudaCopy) -> Piece | None:
        """The last piece of a copy if all of it is launched and it has not ended. The lock is held."""
        launching = self._launching is not None and self._launching.copy is copy
        return None if copy._over or copy._to_go or launching else copy._last

    def _cut(self, copy: CudaCopy, leftovers: Leftovers) -> None:
        """Launch nothing more of a copy that has not ended. The lock is held."""
        if copy._to_go:
            copy._to_go.clear()
            copy._cut_short = True
            at = self._to_launch.index(copy)
            del self._to_launch[at]
            self._pass_on(copy._after, at)
            if not copy._running:
                self._end(copy, leftovers)
        self._shared.changed.notify_all()

    def _pass_on(self, waits: dict[LaunchQueue, int], at: int) -> None:
        """The copy now at this place of the queue, or the next to come, waits instead of one that was taken back."""
        later = self._to_launch[at]._after if at < len(self._to_launch) else self._waits
        for other, position in waits.items():
            later[other] = max(position, later.get(other, 0))

    def _piece_over(self, piece: Piece, leftovers: Leftovers) -> None:
        shared, copy = self._shared, piece.copy
        if piece.mark is not None:
            shared.marks.give_back(piece.mark)
        if piece.reservation is not None:
            leftovers.reservations.append(piece.reservation)
            piece.reservation = None
        piece.over = True
        self._window.nbytes -= piece.nbytes
        copy._running -= 1
        if not copy._running and not copy._to_go:
            self._end(copy, leftovers)

    def _end(self, copy: CudaCopy, leftovers: Leftovers) -> None:
        if copy._before is not None:
            self._shared.marks.give_back(copy._before)
        leftovers.owners.append(copy._keep_alive)
        copy._keep_alive = copy._before = copy._last = None
        copy._after = {}
        copy._over = True
        copy.ended_at = self._shared.clock()

    def withdraw_all(self, leftovers: Leftovers) -> None:
        """Launch nothing more. The lock is held."""
        for copy in tuple(self._to_launch):
            self._cut(copy, leftovers)

    def abandon(self, error: DeviceError, leftovers: Leftovers) -> None:
        """The device was lost, and runs nothing any more. The lock is held."""
        launching = self._launching
        in_hand = [*self._window, launching] if launching is not None else [*self._window]
        for copy in {*self._to_launch, *(piece.copy for piece in in_hand)}:
            copy.error = copy.error or error
            self._cut(copy, leftovers)
        while len(self._window):
            self._piece_over(self._window.pop(), leftovers)
        # A piece that is being launched is over when the call has come back: until then it may read its memory.

    def close(self) -> None:
        """Block until all has ended, and free the driver's stream. Everything was withdrawn, and nothing comes."""
        shared = self._shared
        with shared.lock:
            shared.changed.wait_for(lambda: not self._turn_taken)
            last = self._window.last
        if last is not None:
            self.has_ended(last, block=True)
        self._feeder.end()
        shared.driver.destroy_stream(self._handle)
