"""From settings and tensors to the parts of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from asyncoffload.config import FileSystemTierSettings, MemoryTierSettings, OffloaderSettings
from asyncoffload.core.policies import POLICIES, EvictionPolicy
from asyncoffload.errors import ConfigError
from asyncoffload.memory.region import HostRegion, Pinner
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.types import KVGroup, KVLayout
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.caches import LayerCache, split_layers, tensors_of
from asyncoffload.workers.device_host import DeviceHostHandler
from asyncoffload.workers.devices import device_for

PAGE_BYTES = 4096
SMALL_BLOCK_BYTES = 8 * PAGE_BYTES

KVCaches = Sequence[LayerCache] | Sequence[Sequence[LayerCache]]
"""The caches of the layers, or one list of them per KV-cache group; a tuple of tensors, as ``(K, V)``, is one layer."""


def grouped(kv_caches: KVCaches, block_dim: int = 0) -> list[list[LayerCache]]:
    """The layers by KV-cache group; a flat list is one group.

    Args:
        block_dim: which dimension of the tensors counts blocks; in what is returned it is the first.

    Raises:
        ConfigError: a group has no layer, something else is in its place, or a tensor has no blocks.
    """
    remedy = "pass the layer tensors (num_blocks, ...), or tuples (K, V) of them, or one list of them per group"
    if isinstance(kv_caches, torch.Tensor) or not isinstance(kv_caches, Sequence):
        raise ConfigError(f"kv_caches is a {type(kv_caches).__name__}: {remedy}")
    flat = any(isinstance(entry, (torch.Tensor, tuple)) for entry in kv_caches)
    groups = [list(group) for group in cast("Sequence[Sequence[LayerCache]]", [kv_caches] if flat else kv_caches)]
    if not groups or not all(groups):
        raise ConfigError(f"kv_caches has groups of {[len(group) for group in groups]} layers: {remedy}")
    for index, group in enumerate(groups):
        for layer, cache in enumerate(group):
            for tensor in cache if isinstance(cache, tuple) and cache else (cache,):
                if not isinstance(tensor, torch.Tensor) or tensor.ndim <= block_dim or not tensor.shape[block_dim]:
                    what = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                    raise ConfigError(f"kv_caches: layer {layer} of group {index} is {what}: {remedy}")
    return split_layers(groups, block_dim)


def layout_of(settings: OffloaderSettings, kv_caches: Sequence[Sequence[LayerCache]]) -> KVLayout:
    """What the bytes of these caches mean under these settings; the shapes of blocks count.

    Raises:
        ConfigError: the block size differs from ``settings.block_bytes``.
    """
    groups = tensors_of(kv_caches)
    elements = {f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape[1:])}" for g in groups for tensor in g}
    layout = KVLayout(
        model=settings.model,
        revision=settings.revision,
        dtype=",".join(sorted(elements)),
        block_size=settings.block_size,
        block_size_factor=settings.block_size_factor,
        groups=tuple(KVGroup(tuple(tensor[0].nbytes for tensor in group)) for group in groups),
        parallel=settings.parallel,
        rank=settings.rank,
    )
    if settings.block_bytes is not None and settings.block_bytes != layout.block_bytes:
        raise ConfigError(
            f"block_bytes is {int(settings.block_bytes)}, but the tensors make blocks of {layout.block_bytes} bytes: "
            "correct it, or leave it out"
        )
    return layout


def padded_slot(block_bytes: int) -> int:
    """Bytes of a slot for blocks of that size.

    Slots of all but small blocks end on a page boundary, so that files can be read into them past the page cache.
    """
    if block_bytes < SMALL_BLOCK_BYTES:
        return block_bytes
    return -(-block_bytes // PAGE_BYTES) * PAGE_BYTES


def region_for(settings: OffloaderSettings, layout: KVLayout, pinner: Pinner | None = None) -> HostRegion:
    """The primary's memory: as many slots as ``settings.host_bytes`` holds, pinned if somebody can.

    Raises:
        ConfigError: not even one block fits.
        CapacityError: the memory cannot be had.
    """
    slot_bytes = padded_slot(layout.block_bytes)
    n_slots = settings.host_bytes // slot_bytes
    if not n_slots:
        raise ConfigError(
            f"host_bytes is {int(settings.host_bytes)}, which does not hold one block of {slot_bytes} bytes: raise it"
        )
    return HostRegion(n_slots, slot_bytes, pinner=pinner if settings.pin_memory == "auto" else None)


def handler_for(
    settings: OffloaderSettings, kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion, layout: KVLayout
) -> OffloadingHandler:
    """What copies between these caches and the region, on the device that the caches lie on.

    Raises:
        InvalidArgument: they cannot be copied block by block.
        DeviceError: the driver of the device cannot be used.
    """
    device = device_for(kv_caches, region, copy_threads=settings.copy_threads)
    try:
        return DeviceHostHandler(kv_caches, region, layout, layer_order=settings.layer_order, device=device)
    except BaseException:
        device.close()
        raise


def policy_for(settings: OffloaderSettings) -> EvictionPolicy:
    """A new eviction policy of the kind that the settings name.

    Raises:
        ConfigError: there is none of that name.
    """
    if settings.policy not in POLICIES:
        raise ConfigError(f"policy {settings.policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    return POLICIES[settings.policy]()


def tiers_for(settings: OffloaderSettings, layout: KVLayout, view: memoryview) -> list[SecondaryTierManager]:
    """The secondary tiers that the settings name, over the primary's slots.

    Raises:
        ConfigError: what a tier says to its settings.
    """
    tiers: list[SecondaryTierManager] = []
    for tier in settings.tiers:
        match tier:
            case FileSystemTierSettings():
                threads = auto_io_threads(layout.block_bytes) if tier.io_threads == "auto" else tier.io_threads
                tiers.append(
                    FileSystemTierManager(
                        layout,
                        view,
                        tier.name,
                        tier.root_dir,
                        threads,
                        threads,
                        max_queued_bytes=tier.max_queued_bytes,
                        direct_io=tier.direct_io,
                        quota=tier.quota,
                        min_free=tier.min_free,
                        durability=tier.durability,
                        io_timeout=tier.io_timeout,
                    )
                )
            case MemoryTierSettings():
                tiers.append(ExampleSecondaryTierManager(layout, view, tier.name))
    return tiers
