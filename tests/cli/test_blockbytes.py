"""Every byte of a block is decided by its key and its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.cli.blockbytes import BlockBytes
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import make_key

PAGE = 64
KEYS = [make_key(bytes([n])) for n in range(40)]


def _layers(layers: int = 3, blocks: int = 64, page: int = PAGE) -> list[torch.Tensor]:
    return [torch.zeros(blocks, page, dtype=torch.uint8) for _ in range(layers)]


def test_what_was_written_is_right_wherever_it_lies() -> None:
    layers = _layers()
    blocks = list(range(63, 23, -1))
    BlockBytes(layers).write(KEYS, blocks)
    moved = [layer.flip(0).contiguous() for layer in layers]
    assert BlockBytes(moved).count_wrong(KEYS, [63 - block for block in blocks]) == 0


@given(st.integers(0, 2), st.integers(0, 39), st.integers(0, PAGE - 1), st.integers(0, 7))
def test_one_flipped_bit_is_one_wrong_byte(layer: int, block: int, byte: int, bit: int) -> None:
    layers = _layers()
    contents = BlockBytes(layers)
    contents.write(KEYS, range(40))
    layers[layer][block, byte] ^= 1 << bit
    assert contents.count_wrong(KEYS, range(40)) == 1


def test_another_block_is_wrong_nearly_everywhere() -> None:
    contents = BlockBytes(_layers())
    contents.write(KEYS, range(40))
    swapped = [KEYS[1], KEYS[0]]
    assert contents.count_wrong(swapped, [0, 1]) > 0.98 * 2 * 3 * PAGE


def test_nothing_written_is_wrong_nearly_everywhere() -> None:
    assert BlockBytes(_layers()).count_wrong(KEYS, range(40)) > 0.98 * 40 * 3 * PAGE


def test_a_wiped_block_is_wrong_nearly_everywhere_and_its_neighbour_is_not() -> None:
    contents = BlockBytes(_layers())
    contents.write(KEYS, range(40))
    contents.wipe([3, 5])
    assert contents.count_wrong([KEYS[3], KEYS[5]], [3, 5]) > 0.98 * 2 * 3 * PAGE
    assert contents.count_wrong([KEYS[4]], [4]) == 0
    contents.wipe([])


def test_batches_are_whole_for_blocks_larger_than_one() -> None:
    layers = _layers(layers=1, blocks=3, page=2 << 20)
    contents = BlockBytes(layers)
    contents.write(KEYS[:3], [2, 0, 1])
    assert contents.count_wrong(KEYS[:3], [2, 0, 1]) == 0
    layers[0][1, -1] ^= 1
    assert contents.count_wrong(KEYS[:3], [2, 0, 1]) == 1


def test_a_page_is_made_of_words() -> None:
    with pytest.raises(InvalidArgument, match="a page of 12 bytes"):
        BlockBytes(_layers(page=12))
