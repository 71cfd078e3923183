"""The whole stack over CUDA: the fake driver, with pinned and with pageable host memory, and a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from asyncoffload import HostRegion, KVLayout, LayerArrival, Offloader, OffloadingHandler
from asyncoffload.workers.caches import LayerCache, tensors_of
from asyncoffload.workers.device_host import DeviceHostHandler
from tests.offloader.rig import keys_of
from tests.workers.kinds import FakeCuda

LAYERS = 4
BLOCKS = 16
PAGE = (2, 16, 2, 128)


class Stack:
    """An offloader over CUDA, the tensors on its device, and the compute stream."""

    def __init__(self, how: str, undo: ExitStack, root: Path) -> None:
        caches = [torch.randint(0, 256, (BLOCKS, *PAGE), dtype=torch.uint8) for _ in range(LAYERS)]
        block_bytes = LAYERS * caches[0][0].nbytes
        plan = {"host_bytes": 2 * BLOCKS * block_bytes, "tiers": [{"type": "fs", "root_dir": str(root)}]}
        if how == "CUDA":
            if not torch.cuda.is_available():
                pytest.skip("needs a CUDA device")
            self.caches = [cache.cuda() for cache in caches]
            self.offloader = Offloader(plan, kv_caches=self.caches)
            self.compute: object = torch.cuda.current_stream()
            assert "pinned" in repr(self.offloader)
            return
        kind = FakeCuda(undo)
        self.caches = [kind.place(cache) for cache in caches]
        self.compute = kind.compute_stream

        def handler(
            kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion, layout: KVLayout
        ) -> OffloadingHandler:
            if how == "pinned":
                region.pin(kind.pinner())
            device = kind.device(region, *(tensor for group in tensors_of(kv_caches) for tensor in group))
            return DeviceHostHandler(kv_caches, region, layout, device=device)

        self.offloader = Offloader(plan, kv_caches=self.caches, handler=handler)

    def copy(self) -> list[torch.Tensor]:
        return [cache.cpu().clone() for cache in self.caches]

    def poison(self) -> None:
        for cache in self.caches:
            cache.fill_(0xDB)


@pytest.fixture(params=["pinned", "pageable", pytest.param("CUDA", marks=pytest.mark.gpu)])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as undo:
        yield Stack(request.param, undo, tmp_path)


@pytest.mark.parametrize("from_disk", [False, True])
async def test_blocks_go_and_come_back(stack: Stack, from_disk: bool) -> None:
    keys = keys_of("cuda", BLOCKS)
    async with stack.offloader as offloader:
        before = stack.copy()
        assert (await offloader.store(keys, range(BLOCKS))).stored == BLOCKS
        await offloader.settle()
        if from_disk:
            await offloader._manager.reset()
        stack.poison()
        assert (await offloader.load(keys, range(BLOCKS - 1, -1, -1))).blocks == BLOCKS
        assert all(torch.equal(new.flip(0), old) for new, old in zip(stack.copy(), before, strict=True))


async def test_a_compute_stream_waits_for_each_layer(stack: Stack) -> None:
    keys = keys_of("layers", BLOCKS)
    async with stack.offloader as offloader:
        before = stack.copy()
        await offloader.store(keys, range(BLOCKS))
        await offloader.settle()
        await offloader._manager.reset()
        stack.poison()
        arrival = LayerArrival()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(offloader.load(keys, range(BLOCKS), arrival=arrival))
            coming = await arrival.under_way()
            for layer in range(LAYERS):
                arrival.wait(layer, stack.compute)
                await arrival.layer(layer)
                assert torch.equal(stack.caches[layer].cpu(), before[layer])
        assert load.result() == coming
        assert coming.blocks == BLOCKS
