"""The pieces of one stream that the driver has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from asyncoffload.device.cuda.copy import Piece
from asyncoffload.device.cuda.pools import Mark

WINDOW_PIECES: Final = 256
"""The most pieces in the driver's hands. It queues about a thousand calls; one more would block."""


class Window:
    """What was launched in a stream and is not known to have ended, in order. Used under the device's lock.

    Args:
        max_bytes: what the pieces may hold together; a single one may hold more.

    Attributes:
        nbytes: what they hold, with the piece that is being launched.
    """

    def __init__(self, max_bytes: int) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._pieces: deque[Piece] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    @property
    def last(self) -> Piece | None:
        """The piece launched last."""
        return self._pieces[-1] if self._pieces else None

    def in_the_way_of(self, nbytes: int) -> Piece | None:
        """The oldest piece, if one of so many bytes has to wait for its end."""
        if not self._pieces or (self.nbytes + nbytes <= self._max_bytes and len(self._pieces) < WINDOW_PIECES):
            return None
        return self._pieces[0]

    def mark_up_to(self, position: int) -> Mark | None:
        """The mark behind the copies up to a position in the stream; None if all that was launched has ended."""
        for piece in reversed(self._pieces):
            if piece.copy.position <= position:
                return piece.mark
        return None

    def add(self, piece: Piece) -> None:
        """A piece was launched; its bytes are counted since that began."""
        self._pieces.append(piece)

    def pop(self) -> Piece:
        """Take out the oldest piece; its bytes count until it is over."""
        return self._pieces.popleft()
