"""Merged and cut batches move the same bytes to the same places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.coalesce import CopyBatch, coalesce


def batch(*copies: tuple[int, int, int]) -> CopyBatch:
    columns = np.array(copies, dtype=np.int64).reshape(-1, 3)
    return CopyBatch(columns[:, 0], columns[:, 1], columns[:, 2])


def rows(part: CopyBatch) -> list[tuple[int, int, int]]:
    return list(zip(part.dst.tolist(), part.src.tolist(), part.nbytes.tolist(), strict=True))


def cut(whole: CopyBatch, *, piece_bytes: int = 1 << 30, piece_copies: int = 1 << 30) -> Sequence[CopyBatch]:
    return coalesce(whole, piece_bytes=piece_bytes, piece_copies=piece_copies)


@pytest.mark.parametrize(
    ("copies", "merged"),
    [
        ([(0, 100, 4), (4, 104, 4), (8, 108, 4)], [(0, 100, 12)]),
        ([(0, 100, 4), (4, 104, 8), (12, 112, 1)], [(0, 100, 13)]),
        ([(0, 100, 4), (5, 104, 4)], [(0, 100, 4), (5, 104, 4)]),
        ([(0, 100, 4), (4, 105, 4)], [(0, 100, 4), (4, 105, 4)]),
        ([(4, 104, 4), (0, 100, 4)], [(4, 104, 4), (0, 100, 4)]),
        ([(0, 100, 4), (4, 104, 4), (20, 200, 4), (24, 204, 4)], [(0, 100, 8), (20, 200, 8)]),
    ],
    ids=["run", "uneven", "gap in dst", "gap in src", "descending", "two runs"],
)
def test_only_neighbours_on_both_sides_merge(
    copies: list[tuple[int, int, int]], merged: list[tuple[int, int, int]]
) -> None:
    assert [rows(piece) for piece in cut(batch(*copies))] == [merged]


def test_an_empty_batch_has_no_pieces() -> None:
    assert len(cut(batch())) == 0


@pytest.mark.parametrize(
    ("seams", "merged"),
    [
        ([], [(0, 100, 16)]),
        ([8], [(0, 100, 8), (8, 108, 8)]),
        ([104, 112], [(0, 100, 4), (4, 104, 8), (12, 112, 4)]),
        ([0, 100, 116, 500], [(0, 100, 16)]),
    ],
    ids=["none", "in dst", "in src", "at the ends"],
)
def test_nothing_merges_across_a_seam(seams: list[int], merged: list[tuple[int, int, int]]) -> None:
    run = batch(*((n, 100 + n, 4) for n in range(0, 16, 4)))
    (piece,) = coalesce(run, piece_bytes=1 << 30, piece_copies=1 << 30, seams=np.array(seams, dtype=np.int64))
    assert rows(piece) == merged


def test_a_piece_is_bounded_in_copies() -> None:
    scattered = batch(*((10 * n, 1000 + 10 * n, 4) for n in range(7)))
    assert [len(piece) for piece in cut(scattered, piece_copies=3)] == [3, 3, 1]


def test_a_run_is_cut_where_a_piece_is_full() -> None:
    run = batch(*((4 * n, 1000 + 4 * n, 4) for n in range(10)))
    assert [rows(piece) for piece in cut(run, piece_bytes=16)] == [
        [(0, 1000, 16)],
        [(16, 1016, 16)],
        [(32, 1032, 8)],
    ]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=40),
    st.integers(1, 30),
    st.integers(1, 5),
)
def test_pieces_move_what_the_batch_moves(
    steps: list[tuple[int, bool, bool]], piece_bytes: int, piece_copies: int
) -> None:
    dst, src, copies = 0, 10_000, list[tuple[int, int, int]]()
    for nbytes, dst_gap, src_gap in steps:
        dst, src = dst + dst_gap, src + src_gap
        copies.append((dst, src, nbytes))
        dst, src = dst + nbytes, src + nbytes
    whole = batch(*copies)

    pieces = cut(whole, piece_bytes=piece_bytes, piece_copies=piece_copies)

    def moved(parts: Sequence[CopyBatch]) -> list[tuple[int, int]]:
        return [(d + i, s + i) for part in parts for d, s, n in rows(part) for i in range(n)]

    assert moved(pieces) == moved([whole])
    longest = max((nbytes for _, _, nbytes in copies), default=0)
    assert all(1 <= len(piece) <= piece_copies for piece in pieces)
    assert all(piece.total_bytes < piece_bytes + longest for piece in pieces)
