"""What the bytes of a chunk of vLLM's mean, in our words: the layout, and how chunks lie in shared slots.

A *chunk* is vLLM's word for our offloaded block: ``blocks_per_chunk`` device blocks. Each rank holds a part of it, and
a slot is all ranks' parts, one after the other, perhaps with padding at its end: the tiers in the scheduler store
whole slots.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import torch

from asyncoffload.errors import ConfigError
from asyncoffload.offloader.wiring import padded_slot
from asyncoffload.types import KVGroup, KVLayout

if TYPE_CHECKING:
    from vllm.v1.kv_offload.config import OffloadingConfig

PartOrder = Literal["blocks", "tensors", "canonical"]
"""How a rank's part of a slot is ordered: device block by device block as our worker writes it, or KV-cache tensor by
tensor as vLLM's does, or as vLLM's does with ``canonical_layout``."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def layout_of(
    config: OffloadingConfig, *, order: PartOrder, revision: str | None = None, replicated: bool = False
) -> KVLayout:
    """The layout of whole slots, as the scheduler and its tiers see them.

    Everything that decides what the bytes mean is in it, and with it in the fingerprint: besides the sizes these are
    vLLM's version, the device, the order of elements, the layers, and all parallel sizes.

    Args:
        config: vLLM's description.
        order: how each rank's part is ordered.
        revision: names the weights; by default what :func:`revision_of` says.
        replicated: the ranks hold the same bytes, and a slot holds them once.

    Raises:
        ConfigError: vLLM does not say how large a block is.
    """
    parallel = config.parallel
    if config.worker_kv_bytes_per_block <= 0 or not config.groups:
        raise ConfigError(
            f"vLLM says that a block of its KV cache has {config.worker_kv_bytes_per_block} bytes in "
            f"{len(config.groups)} groups: this model's cache cannot be offloaded"
        )
    copies = 1 if replicated else parallel.world_size
    # Keys carry vLLM's number of a group, and some groups may not be offloaded: the table must reach to the last.
    n_groups = 1 + max(group.group_id for group in config.groups)
    slot = KVGroup((config.worker_kv_bytes_per_block,) * copies)
    return KVLayout(
        model=config.model.name,
        revision=revision_of(config.model.name) if revision is None else revision,
        dtype=", ".join((config.model.dtype, f"{config.kv_cache_layout} by {order}", _structure(config), _engine())),
        block_size=config.groups[0].tokens_per_block,
        block_size_factor=config.cache.blocks_per_chunk,
        groups=(slot,) * n_groups,
        parallel=(
            ("tp", parallel.tp_size),
            ("pp", parallel.pp_size),
            ("pcp", parallel.pcp_size),
            ("dcp", parallel.dcp_size),
            ("copies", copies),
        ),
    )


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How slots are cut: the same on the scheduler's and on every worker's side.

    Attributes:
        layout: of whole slots.
        part_bytes: bytes of one rank's part; rank ``r`` has those from ``r * part_bytes`` on.
        slot_bytes: bytes of a slot, with padding.
        n_slots: slots that fit into the host memory.
    """

    layout: KVLayout
    part_bytes: int
    slot_bytes: int
    n_slots: int

    @classmethod
    def of(cls, config: OffloadingConfig, host_bytes: int, *, revision: str | None = None) -> SlotPlan:
        """Cut ``host_bytes``, for all ranks together, into slots.

        Raises:
            ConfigError: not one slot fits, or as :func:`layout_of` says.
        """
        layout = layout_of(config, order="blocks", revision=revision)
        slot_bytes = padded_slot(layout.block_bytes)
        n_slots = host_bytes // slot_bytes
        if not n_slots:
            raise ConfigError(
                f"cpu_bytes_to_use is {host_bytes}, but one chunk of {layout.block_size_factor} blocks has "
                f"{slot_bytes} bytes over {config.parallel.world_size} ranks: raise it"
            )
        part_bytes = config.worker_kv_bytes_per_block * layout.block_size_factor
        return cls(layout, part_bytes, slot_bytes, n_slots)


def revision_of(model: str) -> str:
    """What tells the weights below a directory from others that were there before: names, sizes and times of files.

    Empty for a model that is not a directory.
    """
    if not os.path.isdir(model):
        return ""
    files = sorted(entry.name for entry in os.scandir(model) if entry.name.endswith((".json", *_WEIGHTS)))
    stats = [(name, os.stat(os.path.join(model, name))) for name in files]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return f"files {blake2b(text.encode(), digest_size=8).hexdigest()}"


def _structure(config: OffloadingConfig) -> str:
    """The groups: tokens of a block, and which layers; by hash, since layers may be many."""
    groups: Mapping[int, tuple[int, tuple[str, ...]]] = {
        group.group_id: (group.tokens_per_block, group.layer_names) for group in config.groups
    }
    tokens = "+".join(str(tokens) for tokens, _ in groups.values())
    return f"layers {blake2b(repr(sorted(groups.items())).encode(), digest_size=8).hexdigest()} of {tokens} tokens"


def _engine() -> str:
    """vLLM's version, and the device: kernels for different processors order the elements differently."""
    import vllm
    from vllm.platforms import current_platform

    if current_platform.device_type != "cpu":
        return f"vLLM {vllm.__version__} on {current_platform.device_type}"
    matrix = "with AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"vLLM {vllm.__version__} on {torch.backends.cpu.get_cpu_capability()} {matrix}".rstrip()
