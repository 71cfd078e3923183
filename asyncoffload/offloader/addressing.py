"""From keys and a flat list of device blocks to the two specs of a transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, Int32s, KVLayout


class DeviceBlocks:
    """The device blocks of a request: ``block_size_factor`` of them for each key, in key order.

    Args:
        layout: says how many device blocks make an offloaded one, and which groups there are.
        keys: the request's keys; every one belongs to a group of the layout.
        blocks: the device blocks.

    Raises:
        InvalidArgument: their number is not that of the keys times the factor, or a key's group does not exist.
    """

    def __init__(self, layout: KVLayout, keys: Sequence[OffloadKey], blocks: Sequence[int] | Int32s) -> None:
        factor = layout.block_size_factor
        if len(blocks) != len(keys) * factor:
            raise InvalidArgument(
                f"{len(keys)} keys need {len(keys) * factor} device blocks ({factor} each), got {len(blocks)}"
            )
        self._n_groups = len(layout.groups)
        self._blocks = np.asarray(blocks, dtype=np.int32).reshape(len(keys), factor)
        self._groups = np.array([group_of(key) for key in keys], dtype=np.int64)
        if self._groups.size and self._groups.max() >= self._n_groups:
            wrong = keys[int(self._groups.argmax())]
            raise InvalidArgument(
                f"key {wrong.hex()} belongs to KV-cache group {group_of(wrong)}, but there are {self._n_groups} groups"
            )

    def specs(
        self, indices: Sequence[int] | slice, slots: CPULoadStoreSpec
    ) -> tuple[GPULoadStoreSpec, CPULoadStoreSpec]:
        """The device side and the host side of a transfer of some of the keys.

        Args:
            indices: which keys.
            slots: one slot for each of them, in that order.
        """
        groups, blocks = self._groups[indices], self._blocks[indices]
        factor = blocks.shape[1]
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups, minlength=self._n_groups) * factor
        device = GPULoadStoreSpec(blocks[order].ravel(), sizes.tolist())
        return device, CPULoadStoreSpec(slots.block_ids[order], slots.generations[order])
