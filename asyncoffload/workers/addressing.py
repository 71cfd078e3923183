"""Which bytes a transfer moves: from blocks, layers and slots to addresses.

The slot of an offloaded block holds, for each of its ``block_size_factor`` device blocks in turn, the pages of all
layers of the group in order, without gaps from byte 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.errors import InvalidArgument
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, Int64s, KVLayout
from asyncoffload.workers.caches import GroupCaches, LayerCache, describe, tensors_of

LAYERS_BYTES = 2 << 20
"""Least bytes of a part of a load by layers: smaller copies cost more in launching than they gain in overlap."""


@dataclass(slots=True, eq=False)
class _Part:
    """What a transfer moves of one group, and how far into the first offloaded block it begins."""

    group: GroupCaches
    first: int
    blocks: list[int]
    slots: list[int]


@dataclass(frozen=True, slots=True)
class LayersPart:
    """The copies of some layers of a load.

    Attributes:
        end: the number of the layer behind the last of them.
        nbytes: bytes of all of them.
        batch: makes the copies.
    """

    end: int
    nbytes: int
    batch: Callable[[], CopyBatch]


class Fragments:
    """A checked transfer: pages of device blocks, and their places in slots. Addresses are worked out when asked for.

    Attributes:
        blocks: the device blocks that are touched; of all groups.
        slots: the slots that are touched.
        total_bytes: bytes to be moved.
    """

    __slots__ = ("_addresses", "_parts", "blocks", "slots", "total_bytes")

    def __init__(
        self, addresses: KVAddresses, parts: list[_Part], blocks: list[int], slots: list[int], total_bytes: int
    ) -> None:
        self._addresses = addresses
        self._parts = parts
        self.blocks = blocks
        self.slots = slots
        self.total_bytes = total_bytes

    def store(self) -> CopyBatch:
        """The copies of a store: from the device into the slots."""
        device, host, nbytes = self._addresses._arrays(self._parts)
        return CopyBatch(dst=host, src=device, nbytes=nbytes)

    def load(self) -> CopyBatch:
        """The copies of a load: from the slots to the device."""
        return self._load(self._parts)

    def load_by_layer(self, least_bytes: int = LAYERS_BYTES) -> list[LayersPart]:
        """The copies of a load as parts that follow each other: some layers each, in their order.

        Args:
            least_bytes: a part has at least so many bytes, but for the last.
        """
        parts: list[LayersPart] = []
        layer_bytes = np.zeros(self._addresses.n_layers, dtype=np.int64)
        for part in self._parts:
            np.add.at(layer_bytes, part.group.layers, len(part.blocks) * part.group.pages)
        first = nbytes = 0
        for layer, more in enumerate(layer_bytes.tolist()):
            nbytes += more
            if nbytes >= least_bytes or layer + 1 == self._addresses.n_layers:
                parts.append(LayersPart(layer + 1, nbytes, partial(self._load_layers, first, layer + 1)))
                first, nbytes = layer + 1, 0
        return parts

    def _load_layers(self, first: int, end: int) -> CopyBatch:
        return self._load([replace(part, group=part.group.of_layers(first, end)) for part in self._parts])

    def _load(self, parts: Sequence[_Part]) -> CopyBatch:
        device, host, nbytes = self._addresses._arrays(parts)
        return CopyBatch(dst=device, src=host, nbytes=nbytes)


class KVAddresses:
    """The addresses of a model's KV caches and of a region of slots.

    Args:
        kv_caches: ``kv_caches[g][l]`` is layer ``l`` of group ``g``: a tensor of shape ``(num_blocks, ...)`` and any
            type, or several, as K and V apart. Blocks are contiguous; between blocks there may be padding.
        region: the slots.
        layout: what the bytes mean; decides the page sizes.
        slot_offset: where in a slot the bytes begin: several ranks may share slots, each with a part of its own.
        layer_order: the pairs ``(g, l)`` in the order in which the model runs the layers; by default group by group.

    Attributes:
        n_layers: layers of all groups.
        max_blocks: device blocks of the largest group.

    Raises:
        InvalidArgument: tensors, region and layout do not fit each other, or the order does not name each layer once.
    """

    def __init__(
        self,
        kv_caches: Sequence[Sequence[LayerCache]],
        region: HostRegion,
        layout: KVLayout,
        *,
        slot_offset: int = 0,
        layer_order: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._groups = describe(kv_caches, layout, layer_order)
        self.n_layers = 1 + max(int(group.layers.max()) for group in self._groups)
        self.max_blocks = max(group.n_blocks for group in self._groups)
        if slot_offset < 0 or region.slot_bytes < slot_offset + layout.block_bytes:
            raise InvalidArgument(
                f"slots of {region.slot_bytes} bytes cannot hold offloaded blocks of {layout.block_bytes} "
                f"from byte {slot_offset} on: make the region with slot_bytes=layout.block_bytes"
            )
        self._factor = layout.block_size_factor
        self._n_slots = region.n_slots
        self._slot_bytes = region.slot_bytes
        self._keep_alive = (region.tensor, tensors_of(kv_caches))
        self._first_slot = region.tensor.data_ptr() + slot_offset

    def store(self, source: GPULoadStoreSpec, destination: CPULoadStoreSpec) -> Fragments:
        """The fragments of a store.

        Raises:
            InvalidArgument: a block or slot does not exist, the specs do not fit each other, or a slot is named twice.
        """
        fragments = self._fragments(source, destination)
        _require_distinct("slot", fragments.slots)
        return fragments

    def load(self, source: CPULoadStoreSpec, destination: GPULoadStoreSpec) -> Fragments:
        """The fragments of a load.

        Raises:
            InvalidArgument: a block or slot does not exist, the specs do not fit each other, or a device block is
                named twice within a group.
        """
        fragments = self._fragments(destination, source)
        for part in fragments._parts:
            _require_distinct("device block", part.blocks)
        return fragments

    def _fragments(self, device: GPULoadStoreSpec, host: CPULoadStoreSpec) -> Fragments:
        # On the caller's thread, so plain lists: they also keep what was asked for if the specs are changed later.
        blocks, slots = device.block_ids.tolist(), host.block_ids.tolist()
        sizes, factor = device.group_sizes, self._factor
        if len(sizes) != len(self._groups):
            raise InvalidArgument(
                f"the device spec has {len(sizes)} groups, the layout {len(self._groups)}: "
                "pass group_sizes with one entry per group, 0 where nothing moves"
            )
        parts: list[_Part] = []
        n_blocks = n_slots = total_bytes = 0
        for group, size, index in zip(self._groups, sizes, device.block_indices):  # noqa: B905 (a spec checks itself)
            first = index % factor
            until = n_slots + ((first + size - 1) // factor + 1 if size else 0)
            of_group = blocks[n_blocks : n_blocks + size]
            if of_group and (min(of_group) < 0 or max(of_group) >= group.n_blocks):
                raise _does_not_exist("device block", of_group, group.n_blocks)
            parts.append(_Part(group, first, of_group, slots[n_slots:until]))
            n_blocks += size
            n_slots = until
            total_bytes += size * group.block_bytes
        if n_slots != len(slots):
            raise InvalidArgument(
                f"device blocks {sizes} from entries {tuple(part.first for part in parts)} on fill {n_slots} offloaded "
                f"blocks of {factor}, but {len(slots)} slots are given: one slot per offloaded block is needed"
            )
        if slots and (min(slots) < 0 or max(slots) >= self._n_slots):
            raise _does_not_exist("slot", slots, self._n_slots)
        return Fragments(self, parts, blocks, slots, total_bytes)

    def _arrays(self, parts: Sequence[_Part]) -> tuple[Int64s, Int64s, Int64s]:
        """Addresses of the pages on the device and in the slots, block by block and within a block layer by layer,
        and the sizes of the pages: int64 of shape ``(n,)`` each."""
        device, host, nbytes = zip(*map(self._arrays_of_group, parts), strict=True)
        return np.concatenate(device), np.concatenate(host), np.concatenate(nbytes)

    def _arrays_of_group(self, part: _Part) -> tuple[Int64s, Int64s, Int64s]:
        group = part.group
        blocks, slots = np.array(part.blocks, dtype=np.int64), np.array(part.slots, dtype=np.int64)
        entry = part.first + np.arange(len(blocks))
        entry_offset = (entry % self._factor) * group.block_bytes
        in_region = self._first_slot + slots[entry // self._factor] * self._slot_bytes + entry_offset
        device = group.bases + blocks[:, np.newaxis] * group.strides
        host = in_region[:, np.newaxis] + group.offsets
        return device.ravel(), host.ravel(), np.tile(group.pages, len(blocks))


def _does_not_exist(what: str, ids: list[int], count: int) -> InvalidArgument:
    wrong = min(ids) if min(ids) < 0 else max(ids)
    return InvalidArgument(f"{what} {wrong} does not exist: there are {count}, numbered from 0")


def _require_distinct(what: str, ids: list[int]) -> None:
    # Not by sorting: that gives up the interpreter lock, which the calling loop then has to win back.
    if len(set(ids)) < len(ids):
        twice = next(number for number in ids if ids.count(number) > 1)
        raise InvalidArgument(f"{what} {twice} is a destination twice: each may be written once per transfer")
