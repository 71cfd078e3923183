"""Random blocks on both sides of a handler, moved there and back, and compared byte for byte."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from asyncoffload.cli.device_bench.figures import WrongBytesError
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.device.base import CopyDevice, Direction
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout, TransferSpec
from asyncoffload.workers.base import Transfer
from asyncoffload.workers.device_host import DeviceHostHandler

LAYERS = 32
"""Of the model whose blocks are moved; the slot of a block holds their pages one after the other."""

_POISON = 0xA5


class Blocks:
    """Layer tensors and a region of twice as many blocks and slots as one transfer moves.

    Half of the device blocks are the source of stores, the other half the destination of loads, in random order, and
    so are the slots: sources never change, and what a transfer brings is compared with what it should have brought.

    Args:
        page_bytes: one block of one layer; a multiple of 8.
        n_blocks: what one transfer moves.
    """

    def __init__(self, side: Side, *, page_bytes: int, n_blocks: int, layers: int = LAYERS) -> None:
        order = np.random.default_rng(0)
        self.side = side
        self.n_blocks, self.page_bytes, self.layers = n_blocks, page_bytes, layers
        self.nbytes = n_blocks * layers * page_bytes
        self.layout = KVLayout("bench", "uint8", 16, (KVGroup((page_bytes,) * layers),))
        self.caches = [side.tensor(2 * n_blocks, page_bytes) for _ in range(layers)]
        self.region = side.region(2 * n_blocks, self.layout.block_bytes)
        device_ids, host_ids = order.permutation(2 * n_blocks), order.permutation(2 * n_blocks)
        self.stored_blocks, self.loaded_blocks = device_ids[:n_blocks], device_ids[n_blocks:]
        self.stored_slots, self.loaded_slots = host_ids[:n_blocks], host_ids[n_blocks:]
        words = np.random.Generator(np.random.SFC64(1)).integers(0, 1 << 64, self.nbytes // 8, dtype=np.uint64)
        self._host_truth = torch.from_numpy(words.view(np.uint8)).view(n_blocks, self.layout.block_bytes)
        self._truth = side.tensor(n_blocks, layers, page_bytes)
        self._truth.copy_(self._host_truth.view(self._truth.shape))
        self._on_device = [
            torch.from_numpy(ids).to(self._truth.device) for ids in (self.stored_blocks, self.loaded_blocks)
        ]
        self._on_host = [torch.from_numpy(ids) for ids in (self.stored_slots, self.loaded_slots)]
        for layer, cache in enumerate(self.caches):
            cache[self._on_device[0]] = self._truth[:, layer]
        self.region.tensor[self._on_host[1]] = self._host_truth
        self.poison()

    def poison(self) -> None:
        """Overwrite all destinations, so that what moves nothing cannot pass for what moves the right bytes."""
        for cache in self.caches:
            cache.index_fill_(0, self._on_device[1], _POISON)
        self.region.tensor.index_fill_(0, self._on_host[0], _POISON)
        self.side.settle()

    def check(self, *directions: Direction) -> None:
        """Compare every byte that transfers of these directions should have brought.

        Raises:
            WrongBytesError: one differs.
        """
        self.side.settle()
        if "store" in directions:
            self._require_truth("stored", [self.region.tensor[self._on_host[0]]], [self._host_truth])
        if "load" in directions:
            self._require_truth("loaded", *self._pages(self._on_device[1]))

    def check_sources(self) -> None:
        """Compare every byte that nothing should have written.

        Raises:
            WrongBytesError: one differs.
        """
        self.side.settle()
        self._require_truth("a store read", *self._pages(self._on_device[0]))
        self._require_truth("a load read", [self.region.tensor[self._on_host[1]]], [self._host_truth])

    def close(self) -> None:
        """Let the memory go."""
        self.caches.clear()
        self.region.close()

    def _pages(self, blocks: torch.Tensor) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
        return (cache[blocks] for cache in self.caches), (self._truth[:, layer] for layer in range(self.layers))

    def _require_truth(self, what: str, found: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> None:
        wrong = sum(
            0 if torch.equal(there, expected) else int((there != expected).sum())
            for there, expected in zip(found, right, strict=True)
        )
        if wrong:
            raise WrongBytesError(
                f"{wrong:,} of {self.nbytes:,} bytes that {what} are wrong ({self.n_blocks} blocks of {self.layers} "
                f"pages of {self.page_bytes} bytes): do not trust this device path, and please report it"
            )


class Mover:
    """A handler over :class:`Blocks`; the device is closed with it."""

    def __init__(self, blocks: Blocks, device: CopyDevice) -> None:
        self.blocks = blocks
        self.device = device
        try:
            self.handler = DeviceHostHandler([blocks.caches], blocks.region, blocks.layout, device=device)
        except BaseException:
            device.close()
            raise
        self._specs: dict[tuple[Direction, int], TransferSpec] = {}
        self._ids = itertools.count(1)

    def submit(self, direction: Direction, *, n_blocks: int | None = None, by_layer: bool = False) -> Transfer:
        """Move the first so many blocks of that direction, by default all."""
        key = direction, self.blocks.n_blocks if n_blocks is None else n_blocks
        if key not in self._specs:
            self._specs[key] = self._spec(*key)
        return self.handler.submit(next(self._ids), self._specs[key], by_layer=by_layer)

    def join(self, *transfers: Transfer) -> None:
        """Block until they have ended.

        Raises:
            TransferError: one failed.
        """
        self.handler.synchronize([transfer.job_id for transfer in transfers])
        for transfer in transfers:
            self.require_success(transfer)

    def move(self, direction: Direction) -> None:
        """Submit and block until it has ended."""
        self.join(self.submit(direction))

    def both(self) -> None:
        """One transfer in each direction at once."""
        self.join(self.submit("load"), self.submit("store"))

    def warm(self, *directions: Direction) -> None:
        """Move everything twice, and see that all of it is right."""
        self.blocks.poison()
        for direction in (*directions, *directions):
            self.move(direction)
        self.blocks.check(*directions)

    def chosen(self, direction: Direction) -> dict[str, str]:
        """The engines that move such blocks, most bytes first, and why."""
        before = self.device.engines()
        self.move(direction)
        moved = {
            name: count.nbytes - (before[name].nbytes if name in before else 0)
            for name, count in self.device.engines().items()
        }
        names = sorted((name for name, nbytes in moved.items() if nbytes), key=lambda name: -moved[name])
        reasons = dict.fromkeys(self.blocks.side.reason(self.device, direction, name) for name in names)
        return {"engine": " + ".join(names), "why": "; ".join(reasons)}

    async def aclose(self) -> None:
        """Let what is in flight end, and close handler and device."""
        await self.handler.aclose()

    def _spec(self, direction: Direction, n_blocks: int) -> TransferSpec:
        blocks = self.blocks
        if direction == "store":
            return GPULoadStoreSpec(blocks.stored_blocks[:n_blocks]), CPULoadStoreSpec(blocks.stored_slots[:n_blocks])
        return CPULoadStoreSpec(blocks.loaded_slots[:n_blocks]), GPULoadStoreSpec(blocks.loaded_blocks[:n_blocks])

    @staticmethod
    def require_success(transfer: Transfer) -> None:
        """Raise what the ended transfer failed with."""
        result = transfer.result()
        if result.error is not None:
            raise result.error


@contextmanager
def blocks_of(side: Side, *, page_bytes: int, n_blocks: int, layers: int = LAYERS) -> Iterator[Blocks]:
    """Blocks that are let go, after a last look at what nothing should have written."""
    blocks = Blocks(side, page_bytes=page_bytes, n_blocks=n_blocks, layers=layers)
    try:
        yield blocks
        blocks.check_sources()
    finally:
        blocks.close()


@contextmanager
def mover_of(blocks: Blocks, engine: str | None = None) -> Iterator[Mover]:
    """A handler without an event loop, closed at the end."""
    mover = Mover(blocks, blocks.side.copy_device(engine, caches=blocks.caches, region=blocks.region))
    try:
        yield mover
    finally:
        asyncio.run(mover.aclose())
