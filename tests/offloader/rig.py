"""What the tests of the offloader share: a device whose bytes can be told, and parts that wait for the test."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import shake_128

import numpy as np
import numpy.typing as npt
import torch

from asyncoffload import ANONYMOUS, Offloader, RequestContext
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.keys import OffloadKey, group_of, make_key
from asyncoffload.memory.region import HostRegion
from asyncoffload.testing import FaultyTier, GatedTier
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import (
    KVLayout,
    LookupResult,
)
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.caches import LayerCache
from asyncoffload.workers.device_host import DeviceHostHandler

POISON = 0xDB


def keys_of(name: object, count: int, groups: int = 1) -> list[OffloadKey]:
    """``count`` keys that no other name gives, of the groups in turn."""
    return [make_key(shake_128(f"{name}/{index}".encode()).digest(16), index % groups) for index in range(count)]


@cache
def content_of(key: OffloadKey, layer: int, entry: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The bytes of one page of a block in every test."""
    return np.frombuffer(shake_128(key + bytes([layer, entry])).digest(nbytes), np.uint8)


class Device:
    """Layer tensors whose blocks can be filled with what belongs to a key, poisoned, and compared.

    Args:
        n_blocks: device blocks of each group.
        groups: layers of each group.
        shape: of one page.
        dtype: its elements.
        factor: device blocks per offloaded block.
    """

    def __init__(
        self,
        n_blocks: int = 64,
        *,
        groups: Sequence[int] = (2,),
        shape: Sequence[int] = (16,),
        dtype: torch.dtype = torch.uint8,
        factor: int = 1,
    ) -> None:
        self.n_blocks = n_blocks
        self.factor = factor
        self.kv_caches = [[torch.zeros((n_blocks, *shape), dtype=dtype) for _ in range(layers)] for layers in groups]
        self._pages = [
            [tensor.view(torch.uint8).reshape(n_blocks, -1).numpy() for tensor in group] for group in self.kv_caches
        ]
        self.page_bytes = self._pages[0][0].shape[1]
        self.block_bytes = self.page_bytes * factor * max(groups)

    def fill(self, keys: Sequence[OffloadKey], blocks: Sequence[int]) -> None:
        """Compute the blocks of these keys."""
        for page, content in self._each_page(keys, blocks):
            page[:] = content

    def poison(self, blocks: Iterable[int] | None = None) -> None:
        """Overwrite device blocks of all groups; all of them by default."""
        for block in range(self.n_blocks) if blocks is None else blocks:
            for group in self._pages:
                for pages in group:
                    pages[block] = POISON

    def untouched(self, blocks: Iterable[int]) -> bool:
        """Whether nobody has written to poisoned device blocks."""
        return all((pages[block] == POISON).all() for block in blocks for group in self._pages for pages in group)

    def holds(self, keys: Sequence[OffloadKey], blocks: Sequence[int]) -> bool:
        """Whether every byte of the blocks is that of its key."""
        return all(np.array_equal(page, content) for page, content in self._each_page(keys, blocks))

    def _each_page(
        self, keys: Sequence[OffloadKey], blocks: Sequence[int]
    ) -> Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        for index, key in enumerate(keys):
            for entry in range(self.factor):
                block = blocks[index * self.factor + entry]
                for layer, pages in enumerate(self._pages[group_of(key)]):
                    yield pages[block], content_of(key, layer, entry, self.page_bytes)


def settings(device: Device, slots: int, **others: object) -> dict[str, object]:
    """Settings for a primary of so many slots, all of which may be on their way to a tier at the same time."""
    plan = {"host_bytes": slots * device.block_bytes, "block_size_factor": device.factor, "cascade_blocks": slots}
    return {**plan, **others}


class MemoryTier(ExampleSecondaryTierManager):
    """The memory tier, which need not tell what it has."""

    def __init__(self, layout: KVLayout, view: memoryview, tier_type: str = "gated", *, hints: bool = True) -> None:
        super().__init__(layout, view, tier_type)
        self._hints = hints

    def hint(self, key: OffloadKey) -> bool:
        return self._hints and super().hint(key)

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        self._check_open()
        return [LookupResult.HIT if key in self._blocks else LookupResult.MISS for key in keys]


class TroubledTier(GatedTier[FaultyTier[MemoryTier]]):
    """The memory tier with a gate before each verb, and faults behind the gates."""

    def __init__(self, layout: KVLayout, view: memoryview, tier_type: str = "gated", *, hints: bool = True) -> None:
        super().__init__(FaultyTier(MemoryTier(layout, view, tier_type, hints=hints), primary_kv_view=view))
        self.faults = self.inner
        self.memory = self.inner.inner


class Kept:
    """A factory of tiers that remembers what it made: ``tiers=[kept]``, then ``kept.tier``."""

    def __init__(self, *, hints: bool = True, name: str = "gated") -> None:
        self._hints, self._name = hints, name
        self.tier: TroubledTier

    def __call__(self, layout: KVLayout, view: memoryview) -> TroubledTier:
        self.tier = TroubledTier(layout, view, self._name, hints=self._hints)
        return self.tier


class CopyGate:
    """Copies that the test can hold up or let fail. ``handler=gate.handler`` puts it under an offloader.

    Attributes:
        arrived: released once for each piece of a copy that waits at the shut gate.
        failing: directions whose copies fail: ``"store"``, ``"load"``.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()
        self._open.set()
        self.arrived = asyncio.Semaphore(0)
        self.failing: set[str] = set()
        self._region = range(0)

    def handler(
        self, kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion, layout: KVLayout
    ) -> OffloadingHandler:
        first = region.tensor.data_ptr()
        self._region = range(first, first + region.nbytes)
        return DeviceHostHandler(kv_caches, region, layout, device=CPUDevice(batch_copy=self._copy))

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Hold up every copy for the length of a block, or until :meth:`open`."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    def _copy(self, batch: CopyBatch) -> None:
        if not self._open.is_set():
            self._loop.call_soon_threadsafe(self.arrived.release)
            assert self._open.wait(timeout=60)
        if ("store" if int(batch.dst[0]) in self._region else "load") in self.failing:
            raise OSError(errno.EFAULT, "the test broke this copy")
        copy_one_by_one(batch)


async def turns(n: int = 20) -> None:
    """Let the event loop go round."""
    for _ in range(n):
        await asyncio.sleep(0)


async def only_in_tiers(offloader: Offloader, device: Device, keys: Sequence[OffloadKey]) -> None:
    """Bring blocks into the tiers, and out of the primary and the device."""
    device.fill(keys, range(len(keys)))
    await offloader.store(keys, range(len(keys)))
    await offloader.settle()
    await offloader._manager.reset()
    device.poison()


async def at_rest(offloader: Offloader) -> bool:
    """Whether, once its tiers have nothing to do any more, an open offloader holds nothing for anybody."""
    while not offloader._manager._planner.idle:
        await turns(1)
    return idle(offloader)


def idle(offloader: Offloader) -> bool:
    """Whether all slots are ready or free, without readers, writers, holders or somebody who waits."""
    primary, region, planner = offloader.stats().primary, offloader._region, offloader._manager._planner
    held = sum(map(region.is_held, range(region.n_slots)))
    nobody = primary.pinned == primary.writing == primary.quarantined == primary.doomed == held == 0
    return nobody and primary.ready + primary.free == primary.slots and planner.idle and not planner._reads.book.open


class Leaks:
    """Compares the threads and file descriptors of the process with those of an earlier moment."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def none(self) -> bool:
        """Whether all that came has gone; threads that were told to end are awaited."""
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(timeout=10)
        return set(threading.enumerate()) <= self._threads and _descriptors() <= self._descriptors


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
