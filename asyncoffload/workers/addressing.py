"""Which bytes a transfer moves: from blocks, layers and slots to addresses.

The slot of an offloaded block holds, for each of its ``block_size_factor`` device blocks in turn, the pages of all
layers of the group in order, without gaps from byte 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.errors import InvalidArgument
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, Int32s, Int64s, KVLayout


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Per layer: address of block 0, bytes from block to block, bytes of a page, offset of the page in an entry."""

    bases: Int64s
    strides: Int64s
    pages: Int64s
    offsets: Int64s
    n_blocks: int


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """A transfer in addresses: pages of device blocks, and their places in slots.

    Attributes:
        device, host: addresses, int64 of shape ``(n,)``: block by block, within a block layer by layer.
        nbytes: page sizes, int64 of shape ``(n,)``.
        blocks: the device blocks that are touched; of all groups.
        slots: the slots that are touched.
    """

    device: Int64s
    host: Int64s
    nbytes: Int64s
    blocks: list[int]
    slots: list[int]

    def store(self) -> CopyBatch:
        """The copies of a store: from the device into the slots."""
        return CopyBatch(dst=self.host, src=self.device, nbytes=self.nbytes)

    def load(self) -> CopyBatch:
        """The copies of a load: from the slots to the device."""
        return CopyBatch(dst=self.device, src=self.host, nbytes=self.nbytes)


class KVAddresses:
    """The addresses of a model's KV caches and of a region of slots.

    Args:
        kv_caches: ``kv_caches[g][l]`` is layer ``l`` of group ``g``: a tensor of shape ``(num_blocks, ...)`` and any
            type, whose blocks are contiguous; between blocks there may be padding.
        region: the slots.
        layout: what the bytes mean; decides the page sizes.

    Raises:
        InvalidArgument: tensors, region and layout do not fit each other.
    """

    def __init__(self, kv_caches: Sequence[Sequence[torch.Tensor]], region: HostRegion, layout: KVLayout) -> None:
        if len(kv_caches) != len(layout.groups):
            raise InvalidArgument(f"{len(kv_caches)} groups of KV caches for a layout of {len(layout.groups)} groups")
        if region.slot_bytes < layout.block_bytes:
            raise InvalidArgument(
                f"slots of {region.slot_bytes} bytes cannot hold offloaded blocks of {layout.block_bytes}: "
                "make the region with slot_bytes=layout.block_bytes"
            )
        self._factor = layout.block_size_factor
        self._n_slots = region.n_slots
        self._slot_bytes = region.slot_bytes
        self._keep_alive = (region.tensor, tuple(map(tuple, kv_caches)))
        self._region_base = region.tensor.data_ptr()
        self._groups = [
            _describe(index, tensors, group.page_bytes)
            for index, (tensors, group) in enumerate(zip(kv_caches, layout.groups, strict=True))
        ]

    @property
    def max_blocks(self) -> int:
        """Device blocks of the largest group."""
        return max(group.n_blocks for group in self._groups)

    def store(self, source: GPULoadStoreSpec, destination: CPULoadStoreSpec) -> Fragments:
        """The fragments of a store.

        Raises:
            InvalidArgument: a block or slot does not exist, the specs do not fit each other, or a slot is named twice.
        """
        fragments = self._fragments(source, destination)
        _require_distinct("slot", destination.block_ids)
        return fragments

    def load(self, source: CPULoadStoreSpec, destination: GPULoadStoreSpec) -> Fragments:
        """The fragments of a load.

        Raises:
            InvalidArgument: a block or slot does not exist, the specs do not fit each other, or a device block is
                named twice within a group.
        """
        fragments = self._fragments(destination, source)
        for ids in _consecutive(destination.block_ids, destination.group_sizes):
            _require_distinct("device block", ids)
        return fragments

    def _fragments(self, device: GPULoadStoreSpec, host: CPULoadStoreSpec) -> Fragments:
        if len(device.group_sizes) != len(self._groups):
            raise InvalidArgument(
                f"the device spec has {len(device.group_sizes)} groups, the layout {len(self._groups)}: "
                "pass group_sizes with one entry per group, 0 where nothing moves"
            )
        firsts = [index % self._factor for index in device.block_indices]
        n_slots = [
            -(-(first + size) // self._factor) if size else 0
            for first, size in zip(firsts, device.group_sizes, strict=True)
        ]
        if sum(n_slots) != len(host):
            raise InvalidArgument(
                f"device blocks {device.group_sizes} from entries {tuple(firsts)} on fill {sum(n_slots)} offloaded "
                f"blocks of {self._factor}, but {len(host)} slots are given: one slot per offloaded block is needed"
            )
        _require_within("slot", host.block_ids, self._n_slots)
        block_parts = _consecutive(device.block_ids, device.group_sizes)
        slot_parts = _consecutive(host.block_ids, n_slots)
        parts = [
            self._fragments_of_group(group, first, blocks.astype(np.int64), slots.astype(np.int64))
            for group, first, blocks, slots in zip(self._groups, firsts, block_parts, slot_parts, strict=True)
        ]
        device_side, host_side, nbytes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Fragments(device_side, host_side, nbytes, device.block_ids.tolist(), host.block_ids.tolist())

    def _fragments_of_group(
        self, group: _Group, first: int, blocks: Int64s, slots: Int64s
    ) -> tuple[Int64s, Int64s, Int64s]:
        _require_within("device block", blocks, group.n_blocks)
        entry = first + np.arange(len(blocks))
        entry_offset = (entry % self._factor) * group.pages.sum()
        in_region = self._region_base + slots[entry // self._factor] * self._slot_bytes + entry_offset
        device = group.bases + blocks[:, np.newaxis] * group.strides
        host = in_region[:, np.newaxis] + group.offsets
        return device.ravel(), host.ravel(), np.tile(group.pages, len(blocks))


def _describe(index: int, tensors: Sequence[torch.Tensor], page_bytes: Sequence[int]) -> _Group:
    if len(tensors) != len(page_bytes):
        raise InvalidArgument(f"group {index} has {len(tensors)} tensors for a layout of {len(page_bytes)} layers")
    for layer, (tensor, page) in enumerate(zip(tensors, page_bytes, strict=True)):
        where = f"the tensor of group {index}, layer {layer}"
        if tensor.ndim < 1 or not len(tensor):
            raise InvalidArgument(f"{where} has shape {tuple(tensor.shape)}: the first dimension counts blocks")
        if tensor.device.type != "cpu":
            raise InvalidArgument(f"{where} lies on {tensor.device}: this handler copies between host addresses")
        if not tensor[0].is_contiguous():
            raise InvalidArgument(f"the blocks of {where} are not contiguous: strides {tensor.stride()}")
        if tensor[0].nbytes != page:
            raise InvalidArgument(f"a block of {where} has {tensor[0].nbytes} bytes, the layout says {page}")
        if len(tensor) > 1 and _stride_bytes(tensor) < page:
            raise InvalidArgument(f"the blocks of {where} overlap: {_stride_bytes(tensor)} bytes apart, {page} long")
        if len(tensor) != len(tensors[0]):
            raise InvalidArgument(f"{where} has {len(tensor)} blocks, layer 0 has {len(tensors[0])}")
    pages = np.array(page_bytes, dtype=np.int64)
    return _Group(
        bases=np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64),
        strides=np.array([_stride_bytes(tensor) for tensor in tensors], dtype=np.int64),
        pages=pages,
        offsets=np.cumsum(pages) - pages,
        n_blocks=len(tensors[0]),
    )


def _consecutive(ids: Int32s, sizes: Sequence[int]) -> list[Int32s]:
    ends = itertools.accumulate(sizes)
    return [ids[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _stride_bytes(tensor: torch.Tensor) -> int:
    return tensor.stride(0) * tensor.element_size()


def _require_within(what: str, ids: Int32s | Int64s, count: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < count:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise InvalidArgument(f"{what} {wrong} does not exist: there are {count}, numbered from 0")


def _require_distinct(what: str, ids: Int32s) -> None:
    # Not by sorting: that gives up the interpreter lock, which the calling loop then has to win back.
    named = ids.tolist()
    if len(set(named)) < len(named):
        twice = next(number for number in named if named.count(number) > 1)
        raise InvalidArgument(f"{what} {twice} is a destination twice: each may be written once per transfer")
