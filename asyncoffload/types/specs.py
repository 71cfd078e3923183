"""Where blocks lie: specs point at blocks in one medium."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from asyncoffload.errors import InvalidArgument

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

_MAX_BLOCK_ID = 2**31 - 1


class LoadStoreSpec(ABC):
    """Points at blocks in one medium."""

    @staticmethod
    @abstractmethod
    def medium() -> str:
        """The name of the medium, by which handlers are chosen."""


def _block_ids(ids: Iterable[int] | Int32s) -> Int32s:
    array = np.array(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
    if array.ndim != 1:
        raise InvalidArgument(f"block ids are a flat list of integers, got shape {array.shape}")
    if np.count_nonzero((array < 0) | (array > _MAX_BLOCK_ID)):  # much faster than asking for minimum and maximum
        raise InvalidArgument(f"block ids lie between 0 and 2**31 - 1, got {array.min()} to {array.max()}")
    return array.astype(np.int32)


class BlockIDsLoadStoreSpec(LoadStoreSpec):
    """A medium whose blocks are numbered.

    Attributes:
        block_ids: int32 array of shape ``(n,)``.
    """

    def __init__(self, block_ids: Iterable[int] | Int32s) -> None:
        self.block_ids = _block_ids(block_ids)

    def __len__(self) -> int:
        return len(self.block_ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.block_ids.tolist()!r})"


class GPULoadStoreSpec(BlockIDsLoadStoreSpec):
    """Device blocks, grouped by KV-cache group.

    Attributes:
        block_ids: the device blocks of group 0, then of group 1, and so on.
        group_sizes: how many of them belong to each group; one group by default.
        block_indices: per group, the logical index of its first block within the request. Where an offloaded block
            is made of several device blocks, ``block_indices[g] % block_size_factor`` says how far into the first
            offloaded block the list begins.
    """

    def __init__(
        self,
        block_ids: Iterable[int] | Int32s,
        group_sizes: Sequence[int] | None = None,
        block_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(block_ids)
        self.group_sizes = tuple(group_sizes) if group_sizes is not None else (len(self.block_ids),)
        self.block_indices = tuple(block_indices) if block_indices is not None else (0,) * len(self.group_sizes)
        if sum(self.group_sizes) != len(self.block_ids) or min(self.group_sizes, default=0) < 0:
            raise InvalidArgument(f"group sizes {self.group_sizes} do not add up to {len(self.block_ids)} block ids")
        if len(self.block_indices) != len(self.group_sizes) or min(self.block_indices, default=0) < 0:
            raise InvalidArgument(
                f"one block index >= 0 for each of {len(self.group_sizes)} groups is needed, got {self.block_indices}"
            )

    @staticmethod
    def medium() -> str:
        return "GPU"


class CPULoadStoreSpec(BlockIDsLoadStoreSpec):
    """Slots of the primary tier.

    Attributes:
        block_ids: the slots, one per offloaded block, in key order.
        generations: int64 array of the same shape: which use of each slot is meant. A completion that carries an
            older generation touches nothing.
    """

    def __init__(self, block_ids: Iterable[int] | Int32s, generations: Iterable[int] | Int64s | None = None) -> None:
        super().__init__(block_ids)
        self.generations: Int64s = (
            np.zeros(len(self.block_ids), dtype=np.int64)
            if generations is None
            else np.array(generations if isinstance(generations, np.ndarray) else list(generations), dtype=np.int64)
        )
        if self.generations.shape != self.block_ids.shape:
            raise InvalidArgument(
                f"{len(self.block_ids)} block ids need as many generations, got {self.generations.size}"
            )

    @staticmethod
    def medium() -> str:
        return "CPU"


TransferSpec = tuple[LoadStoreSpec, LoadStoreSpec]
"""Source and destination of a transfer."""
