"""A worker's memory of what it stored, to compare with what it loads: for finding faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import xxhash

from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import GPULoadStoreSpec

Digest = int


class LoadChecker:
    """Checksums of the device blocks of every chunk that this worker stored, compared with those of every load.

    A chunk may have been computed more than once, with other roundings each time: each version counts. A chunk that
    another process stored is unknown.

    Args:
        kv_caches: per group, the layers' tensors of shape ``(num_blocks, page bytes)``.
        factor: device blocks per chunk.

    Attributes:
        compared, unknown: chunks loaded so far that could be compared, and that could not.
    """

    def __init__(self, kv_caches: Sequence[Sequence[torch.Tensor]], factor: int) -> None:
        self._kv_caches = kv_caches
        self._factor = factor
        self._known: dict[OffloadKey, set[tuple[Digest, ...]]] = {}
        self.compared = 0
        self.unknown = 0

    def stored(self, keys: Sequence[OffloadKey], device: GPULoadStoreSpec) -> None:
        """Remember whole chunks, as they lie on the device now."""
        for key, _, digests in self._chunks(keys, device):
            self._known.setdefault(key, set()).add(digests)

    def loaded(self, keys: Sequence[OffloadKey], device: GPULoadStoreSpec) -> None:
        """Compare what has arrived on the device, which may begin and end within a chunk.

        Raises:
            CorruptBlockError: a chunk has bytes that were never stored for it.
        """
        for key, first, digests in self._chunks(keys, device):
            known = self._known.get(key)
            if known is None:
                self.unknown += 1
            elif any(version[first : first + len(digests)] == digests for version in known):
                self.compared += 1
            else:
                raise CorruptBlockError(
                    f"verify_loads: the block of key {key.hex()} was loaded with other bytes than were stored for it: "
                    "please report this with the engine's configuration",
                    failed_keys=[key],
                )

    def _chunks(
        self, keys: Sequence[OffloadKey], device: GPULoadStoreSpec
    ) -> Iterator[tuple[OffloadKey, int, tuple[Digest, ...]]]:
        """Each chunk's key, which of its device blocks is the first one here, and the digests of those here."""
        remaining = iter(keys)
        blocks = iter(device.block_ids.tolist())
        for group, (size, index) in enumerate(zip(device.group_sizes, device.block_indices, strict=True)):
            first = index % self._factor
            while size > 0:
                here = min(size, self._factor - first)
                yield next(remaining), first, tuple(self._digest(group, next(blocks)) for _ in range(here))
                size -= here
                first = 0

    def _digest(self, group: int, block: int) -> Digest:
        digest = xxhash.xxh3_64()
        for tensor in self._kv_caches[group]:
            digest.update(tensor[block].view(torch.uint8).cpu().numpy().data)
        return digest.intdigest()
