"""Lanes: the streams of a handler, which transfers are in flight in each, and what those touch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import CopyDevice, CopyStream, Direction
from asyncoffload.workers.addressing import Fragments
from asyncoffload.workers.transfers import DeviceHostTransfer, Launched

Media = tuple[str, str]


class Lane:
    """One stream of one direction, and which of its transfers touched each block and slot last.

    Block ids of different groups count as one.

    Attributes:
        in_flight: in the order of submission.
    """

    def __init__(
        self, device: CopyDevice, direction: Direction, name: str, media: Media, *, n_blocks: int, n_slots: int
    ) -> None:
        self.name = name
        self.media = media
        self.stream: CopyStream = device.stream(name, direction)
        self.in_flight: deque[DeviceHostTransfer] = deque()
        self._device = device
        self._block_position = [0] * n_blocks
        self._slot_position = [0] * n_slots

    def __repr__(self) -> str:
        return f"Lane({self.name}, {len(self.in_flight)} in flight)"

    def wait_for(self, other: Lane, fragments: Fragments) -> None:
        """What is launched next starts after the transfers of another lane that touch the same blocks or slots."""
        blocks = map(other._block_position.__getitem__, fragments.blocks)
        position = max(chain(blocks, map(other._slot_position.__getitem__, fragments.slots)), default=0)
        if position:
            self.stream.wait_for(other.stream, position)

    def launch(
        self, fragments: Fragments, batches: Sequence[tuple[Callable[[], CopyBatch], int]], keep_alive: object
    ) -> list[Launched]:
        """Submit the copies of a transfer, mark the end of each, and remember what they touch.

        Args:
            batches: what makes each copy, and its bytes.

        Raises:
            Exception: what the stream raises at the first copy. Where a later one fails, this waits for those before.
        """
        launched: list[Launched] = []
        try:
            for make_batch, nbytes in batches:
                copy = self.stream.copy(make_batch, keep_alive=keep_alive)
                event = self._device.event()
                event.record(self.stream)
                launched.append(Launched(copy, event, nbytes))
        except BaseException:
            self.stop(launched)
            for part in launched:
                part.event.synchronize()
            raise
        position, by_block, by_slot = self.stream.position, self._block_position, self._slot_position
        for block in fragments.blocks:
            by_block[block] = position
        for slot in fragments.slots:
            by_slot[slot] = position
        return launched

    def withdraw(self, parts: Sequence[Launched]) -> bool:
        """Take the copies of a transfer back if none has started; returns whether that was so."""
        # From the last on, so that none can start because the one before it is gone.
        return not parts[0].copy.started and all(self.stream.withdraw(part.copy) for part in reversed(parts))

    def stop(self, parts: Sequence[Launched]) -> None:
        """Take back what has not started of a transfer, and let the rest end early."""
        for part in reversed(parts):
            self.stream.stop(part.copy)

    def pop_ended(self, ended: list[DeviceHostTransfer]) -> None:
        """Move the oldest transfers, as far as they have ended, to the end of a list."""
        while self.in_flight and self.in_flight[0]._all_ended():
            ended.append(self.in_flight.popleft())
