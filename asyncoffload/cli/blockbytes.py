"""What a model would have computed: the bytes of every block, derived from its key.

A block is one random tile, the same for all blocks, whose 64-bit words are each multiplied by an odd number and
shifted by another one, both taken from the block's key. Any two blocks differ in practically every word, and so do any
two places of one block: a block of another key, of an earlier use, torn, shifted or with one bit flipped never passes.

All of it is a few array operations per batch, which run without the interpreter lock: it is made for worker threads
that must not disturb an event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey

_WORD = 8
_BATCH_BYTES = 1 << 20


class BlockBytes:
    """Writes and verifies blocks in a list of layer tensors; thread-safe, since it holds nothing but constants.

    Args:
        layers: uint8 tensors of shape ``(blocks, page bytes)``, all alike, in the memory of the processor. A block is
            its page of the first layer, then of the second, and so on.
        seed: another seed gives every block other bytes.

    Raises:
        InvalidArgument: a page is not a whole number of 8-byte words.
    """

    def __init__(self, layers: Sequence[torch.Tensor], *, seed: int = 0) -> None:
        page_bytes = layers[0].shape[1]
        if page_bytes % _WORD:
            raise InvalidArgument(f"a page of {page_bytes} bytes is not a whole number of {_WORD}-byte words")
        self._layers = [layer.numpy().view(np.uint64) for layer in layers]
        self._tile = np.random.default_rng(seed).integers(
            0, 1 << 64, (len(layers), page_bytes // _WORD), dtype=np.uint64
        )
        self._batch = max(1, _BATCH_BYTES // self._tile.nbytes)

    def write(self, keys: Sequence[OffloadKey], blocks: Sequence[int]) -> None:
        """Put into each of these device blocks what belongs to its key."""
        for some_keys, some_blocks in self._batches(keys, blocks):
            scale, shift = _numbers(some_keys)
            for layer, tile in zip(self._layers, self._tile, strict=True):
                layer[some_blocks] = _page(tile, scale, shift)

    def wipe(self, blocks: Sequence[int]) -> None:
        """Fill these device blocks with zeros, so that a load that writes nothing cannot pass for a right one."""
        for layer in self._layers:
            layer[blocks] = 0

    def count_wrong(self, keys: Sequence[OffloadKey], blocks: Sequence[int]) -> int:
        """How many bytes of these device blocks are not what belongs to their keys; every byte is looked at."""
        wrong = 0
        for some_keys, some_blocks in self._batches(keys, blocks):
            scale, shift = _numbers(some_keys)
            for layer, tile in zip(self._layers, self._tile, strict=True):
                difference = layer[some_blocks]
                difference ^= _page(tile, scale, shift)
                if difference.any():
                    wrong += int(np.count_nonzero(difference.view(np.uint8)))
        return wrong

    def _batches(
        self, keys: Sequence[OffloadKey], blocks: Sequence[int]
    ) -> list[tuple[Sequence[OffloadKey], Sequence[int]]]:
        """Pieces whose scratch memory stays small."""
        starts = range(0, len(keys), self._batch)
        return [(keys[i : i + self._batch], blocks[i : i + self._batch]) for i in starts]


def _numbers(keys: Sequence[OffloadKey]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """An odd factor and a summand for each key, as columns."""
    digests = b"".join(blake2b(key, digest_size=2 * _WORD).digest() for key in keys)
    numbers = np.frombuffer(digests, dtype=np.uint64).reshape(len(keys), 2)
    return numbers[:, :1] | np.uint64(1), numbers[:, 1:]


def _page(
    tile: npt.NDArray[np.uint64], scale: npt.NDArray[np.uint64], shift: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    page = tile * scale
    page += shift
    return page
