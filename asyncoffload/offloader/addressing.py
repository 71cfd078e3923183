"""From keys and a flat list of device blocks to the two specs of a transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import GROUP_BYTES, OffloadKey, group_of
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, Int32s, Int64s


class DeviceMap:
    """Which device blocks there are, and how requests name them.

    Args:
        blocks_per_group: how many device blocks each KV-cache group has.
        factor: how many of them make an offloaded block.
    """

    def __init__(self, blocks_per_group: Sequence[int], factor: int) -> None:
        self._counts = np.array(blocks_per_group, dtype=np.int64)
        self._factor = factor

    def groups_of(self, keys: Sequence[OffloadKey]) -> Int64s:
        """The group of each key.

        Raises:
            InvalidArgument: a key belongs to a group that does not exist.
        """
        # All keys in one call: a request has thousands, and the event loop waits.
        tails = b"".join([key[-GROUP_BYTES:] for key in keys])
        groups = np.frombuffer(tails, dtype=f">u{GROUP_BYTES}").astype(np.int64)
        if groups.size and groups.max() >= len(self._counts):
            wrong = keys[int(groups.argmax())]
            raise InvalidArgument(
                f"key {wrong.hex()} belongs to KV-cache group {group_of(wrong)}, but there are {len(self._counts)}, "
                "counted from 0: build keys with keys.make_key(hash, group)"
            )
        return groups

    def blocks_of(self, keys: Sequence[OffloadKey], blocks: Sequence[int] | Int32s, *, distinct: bool) -> DeviceBlocks:
        """The device blocks of a request: ``block_size_factor`` of them for each key, in key order.

        Args:
            keys: the request's keys.
            blocks: their device blocks.
            distinct: within a group each may be named once only, as where they are written to.

        Raises:
            InvalidArgument: a group or a device block does not exist, the number of device blocks is wrong, or one
                is named twice.
        """
        groups, factor = self.groups_of(keys), self._factor
        if len(blocks) != len(keys) * factor:
            raise InvalidArgument(
                f"{len(keys)} keys need {len(keys) * factor} device blocks ({factor} each), got {len(blocks)}"
            )
        ids = np.asarray(blocks)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise InvalidArgument(
                f"device blocks are a flat list of integers, got {ids.dtype} of shape {ids.shape}: {blocks!r}"
            )
        matrix = ids.astype(np.int64).reshape(len(keys), factor)
        wrong = (matrix < 0) | (matrix >= self._counts[groups][:, np.newaxis])
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InvalidArgument(
                f"device block {matrix[row, column]} of key {keys[row].hex()} does not exist: its group has "
                f"{self._counts[groups[row]]}, counted from 0"
            )
        if distinct:
            _require_distinct(matrix * len(self._counts) + groups[:, np.newaxis], len(self._counts))
        return DeviceBlocks(groups, matrix.astype(np.int32), len(self._counts))


class DeviceBlocks:
    """The device blocks of a request. Made by :meth:`DeviceMap.blocks_of`.

    Args:
        groups: the group of each key, shape ``(n_keys,)``.
        blocks: the device blocks of each key, shape ``(n_keys, factor)``.
        n_groups: how many groups there are.
    """

    def __init__(self, groups: Int64s, blocks: Int32s, n_groups: int) -> None:
        self._groups = groups
        self._blocks = blocks
        self._n_groups = n_groups

    def specs(
        self, indices: Sequence[int] | slice, slots: CPULoadStoreSpec
    ) -> tuple[GPULoadStoreSpec, CPULoadStoreSpec]:
        """The device side and the host side of a transfer of some of the keys.

        Args:
            indices: which keys.
            slots: one slot for each of them, in that order.
        """
        groups, blocks = self._groups[indices], self._blocks[indices]
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups, minlength=self._n_groups) * blocks.shape[1]
        device = GPULoadStoreSpec(blocks[order].ravel(), sizes.tolist())
        return device, CPULoadStoreSpec(slots.block_ids[order], slots.generations[order])


def _require_distinct(named: Int64s, n_groups: int) -> None:
    ordered = np.sort(named, axis=None)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        block, group = divmod(int(repeated[0]), n_groups)
        raise InvalidArgument(
            f"device block {block} of group {group} is a destination twice: each can take one block of a request"
        )
