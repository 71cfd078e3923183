"""Where the KV caches of a model lie: per KV-cache group the addresses, strides and pages of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asyncoffload.errors import InvalidArgument
from asyncoffload.types import Int64s, KVLayout

LayerCache = torch.Tensor | Sequence[torch.Tensor]
"""The cache of one layer: a tensor of shape ``(num_blocks, ...)``, or several such, as K and V apart."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupCaches:
    """The tensors of one KV-cache group, as numbers; int64 arrays of shape ``(n_tensors,)``.

    Attributes:
        bases: address of block 0.
        strides: bytes from block to block.
        pages: bytes of a block.
        offsets: where in an entry of a slot the page begins, in bytes.
        layers: the number of the layer that each belongs to.
        n_blocks: blocks of each.
        block_bytes: bytes of a block of all of them.
    """

    bases: Int64s
    strides: Int64s
    pages: Int64s
    offsets: Int64s
    layers: Int64s
    n_blocks: int
    block_bytes: int

    def of_layers(self, first: int, end: int) -> GroupCaches:
        """Only the tensors of the layers from ``first`` up to, without, ``end``."""
        among = (self.layers >= first) & (self.layers < end)
        return GroupCaches(
            self.bases[among],
            self.strides[among],
            self.pages[among],
            self.offsets[among],
            self.layers[among],
            self.n_blocks,
            self.block_bytes,
        )


def split_layers(kv_caches: Sequence[Sequence[LayerCache]], block_dim: int) -> list[list[LayerCache]]:
    """Tensors whose blocks are counted by dimension ``block_dim`` as tensors that count them by the first.

    With 1, a tensor of shape ``(2, num_blocks, ...)`` becomes its K and its V, each ``(num_blocks, ...)``.

    Raises:
        InvalidArgument: a tensor has no such dimension.
    """
    if block_dim == 0:
        return [list(layers) for layers in kv_caches]

    def split(tensor: torch.Tensor) -> list[torch.Tensor]:
        if tensor.ndim < 2:
            raise InvalidArgument(f"a KV cache of shape {tuple(tensor.shape)} has no dimension 1 to count blocks")
        return list(tensor.unbind(0))

    return [[[part for tensor in _tensors(layer) for part in split(tensor)] for layer in group] for group in kv_caches]


def tensors_of(kv_caches: Sequence[Sequence[LayerCache]]) -> list[list[torch.Tensor]]:
    """The tensors of each group, layer by layer."""
    return [[tensor for layer in layers for tensor in _tensors(layer)] for layers in kv_caches]


def describe(
    kv_caches: Sequence[Sequence[LayerCache]],
    layout: KVLayout,
    layer_order: Sequence[tuple[int, int]] | None = None,
) -> list[GroupCaches]:
    """The groups as numbers.

    Args:
        kv_caches: ``kv_caches[g][l]`` is layer ``l`` of group ``g``.
        layout: what they should look like.
        layer_order: the pairs ``(g, l)`` in the order in which the model runs the layers, which numbers them; by
            default group by group.

    Raises:
        InvalidArgument: they do not look like that, or the order does not name every layer once.
    """
    if len(kv_caches) != len(layout.groups):
        raise InvalidArgument(f"{len(kv_caches)} groups of KV caches for a layout of {len(layout.groups)} groups")
    pairs = [(group, layer) for group, layers in enumerate(kv_caches) for layer in range(len(layers))]
    if layer_order is not None and sorted(layer_order) != pairs:
        raise InvalidArgument(
            f"layer_order names {len(layer_order)} layers, and there are {len(pairs)}: name each pair (group, layer) "
            f"from {pairs[0]} to {pairs[-1]} once"
        )
    number = {pair: index for index, pair in enumerate(layer_order or pairs)}
    return [
        _describe_group(group, layers, [number[group, layer] for layer in range(len(layers))], page_bytes.page_bytes)
        for group, (layers, page_bytes) in enumerate(zip(kv_caches, layout.groups, strict=True))
    ]


def _describe_group(
    group: int, layers: Sequence[LayerCache], numbers: Sequence[int], page_bytes: Sequence[int]
) -> GroupCaches:
    tensors = [tensor for layer in layers for tensor in _tensors(layer)]
    if len(tensors) != len(page_bytes):
        raise InvalidArgument(f"group {group} has {len(tensors)} tensors for a layout of {len(page_bytes)}")
    for index, (tensor, page) in enumerate(zip(tensors, page_bytes, strict=True)):
        _check(f"tensor {index} of group {group}", tensor, page)
        if len(tensor) != len(tensors[0]):
            raise InvalidArgument(
                f"tensor {index} of group {group} has {len(tensor)} blocks, the first one has {len(tensors[0])}"
            )
    pages = np.array(page_bytes, dtype=np.int64)
    per_layer = [len(_tensors(layer)) for layer in layers]
    return GroupCaches(
        bases=np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64),
        strides=np.array([_stride_bytes(tensor) for tensor in tensors], dtype=np.int64),
        pages=pages,
        offsets=np.cumsum(pages) - pages,
        layers=np.repeat(np.array(numbers, dtype=np.int64), per_layer),
        n_blocks=len(tensors[0]),
        block_bytes=sum(page_bytes),
    )


def _check(where: str, tensor: torch.Tensor, page: int) -> None:
    if tensor.ndim < 1 or not len(tensor):
        raise InvalidArgument(f"{where} has shape {tuple(tensor.shape)}: the first dimension counts blocks")
    if not tensor[0].is_contiguous():
        raise InvalidArgument(f"the blocks of {where} are not contiguous: strides {tensor.stride()}")
    if tensor[0].nbytes != page:
        raise InvalidArgument(f"a block of {where} has {tensor[0].nbytes} bytes, the layout says {page}")
    if len(tensor) > 1 and _stride_bytes(tensor) < page:
        raise InvalidArgument(f"the blocks of {where} overlap: {_stride_bytes(tensor)} bytes apart, {page} long")


def _tensors(layer: LayerCache) -> Sequence[torch.Tensor]:
    return (layer,) if isinstance(layer, torch.Tensor) else layer


def _stride_bytes(tensor: torch.Tensor) -> int:
    return tensor.stride(0) * tensor.element_size()
