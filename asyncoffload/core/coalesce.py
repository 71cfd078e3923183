"""Byte copies in batches: neighbours merged, cut into pieces of bounded size.

A batch is three flat arrays of addresses and lengths, the form in which drivers take a batched copy. Everything here
is numpy over whole batches: one Python operation per block and layer would cost more than the copies themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from asyncoffload.types import Int64s


@dataclass(frozen=True, slots=True, eq=False)
class CopyBatch:
    """Copies of bytes between addresses of one address space; no two of them write the same byte.

    Attributes:
        dst, src: addresses, int64 of shape ``(n,)``.
        nbytes: length of each copy in bytes, int64 of shape ``(n,)``.
    """

    dst: Int64s
    src: Int64s
    nbytes: Int64s

    def __len__(self) -> int:
        return len(self.nbytes)

    def __getitem__(self, part: slice) -> CopyBatch:
        return CopyBatch(self.dst[part], self.src[part], self.nbytes[part])

    @property
    def total_bytes(self) -> int:
        """Bytes moved by the whole batch."""
        return int(self.nbytes.sum())


def coalesce(
    batch: CopyBatch, *, piece_bytes: int, piece_copies: int, seams: Int64s | None = None
) -> Sequence[CopyBatch]:
    """Merge copies that continue each other on both sides, and cut the batch into pieces.

    Copies merge only with the one before them, so their order decides: list blocks in order, and within a block its
    layers in order. A piece is what runs without looking up: at most ``piece_copies`` copies, and bytes that exceed
    ``piece_bytes`` by less than one of the copies passed in. No merged copy crosses the border of a piece.

    Args:
        seams: addresses, ascending, that no merged copy crosses on either side; none may lie within a copy passed in.

    Returns:
        The pieces in order; none for an empty batch.
    """
    if not len(batch):
        return ()
    starts = np.cumsum(batch.nbytes) - batch.nbytes
    piece = starts // piece_bytes
    continues = (
        (batch.dst[1:] == batch.dst[:-1] + batch.nbytes[:-1])
        & (batch.src[1:] == batch.src[:-1] + batch.nbytes[:-1])
        & (piece[1:] == piece[:-1])
    )
    if seams is not None and len(seams):
        continues &= ~(_among(seams, batch.dst[1:]) | _among(seams, batch.src[1:]))
    heads = np.flatnonzero(np.concatenate(([True], ~continues)))
    merged = CopyBatch(batch.dst[heads], batch.src[heads], np.add.reduceat(batch.nbytes, heads))
    borders = [0, *(np.flatnonzero(np.diff(piece[heads])) + 1).tolist(), len(merged)]
    return tuple(
        merged[first : min(first + piece_copies, end)]
        for begin, end in pairwise(borders)
        for first in range(begin, end, piece_copies)
    )


def _among(ascending: Int64s, addresses: Int64s) -> npt.NDArray[np.bool_]:
    """Which of the addresses are among those given in ascending order."""
    at = np.searchsorted(ascending, addresses)
    found: npt.NDArray[np.bool_] = ascending[np.minimum(at, len(ascending) - 1)] == addresses
    return found
