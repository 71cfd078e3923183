"""What holds for transfers on every device."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import pytest
import torch

from asyncoffload.errors import ClosedError, InvalidArgument, WrongLoopError
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.caches import LayerCache, split_layers, tensors_of
from asyncoffload.workers.device_host import DeviceHostHandler
from tests.workers.kinds import KINDS, Kind, Refuses, make_kind

POISON = 0xDB
CANARY = 0xC5
PAGE = 4096


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    with ExitStack() as undo:
        yield make_kind(request.param, undo)


class Rig:
    """A handler over one layer whose block ``n`` is filled with the byte ``n % 251``, and a region of canaries."""

    def __init__(self, kind: Kind, n_blocks: int, *, page: int = PAGE, refuses: Refuses | None = None) -> None:
        self.kind = kind
        pages = (torch.arange(n_blocks) % 251).to(torch.uint8)
        self.cache = kind.place(pages[:, None].repeat(1, page))
        self.region = kind.region(n_blocks, page)
        self.slots = self.region.tensor
        self.slots.fill_(CANARY)
        layout = KVLayout("m", "uint8", 16, (KVGroup((page,)),))
        device = kind.device(self.region, self.cache, refuses=refuses)
        self.handler = DeviceHostHandler([[self.cache]], self.region, layout, device=device)

    def block(self, index: int) -> torch.Tensor:
        return self.cache[index].cpu()

    def is_filled(self, page: torch.Tensor, value: int) -> bool:
        return bool((page == value).all())

    def holds(self) -> int:
        return sum(map(self.region.is_held, range(self.region.n_slots)))


def store(blocks: Sequence[int], slots: Sequence[int]) -> tuple[GPULoadStoreSpec, CPULoadStoreSpec]:
    return GPULoadStoreSpec(blocks), CPULoadStoreSpec(slots)


def load(slots: Sequence[int], blocks: Sequence[int]) -> tuple[CPULoadStoreSpec, GPULoadStoreSpec]:
    return CPULoadStoreSpec(slots), GPULoadStoreSpec(blocks)


# ---- layouts


@dataclass(frozen=True)
class Shape:
    """How the KV caches of a model are laid out: per group its layers, as a kind of tensor and the shape of a block."""

    groups: tuple[tuple[str, int, tuple[int, ...]], ...]
    dtype: torch.dtype = torch.uint8
    factor: int = 1
    block_dim: int = 0

    def make(self, kind: Kind, n_blocks: int) -> list[list[LayerCache]]:
        return [[self._layer(kind, how, n_blocks, block) for _ in range(layers)] for how, layers, block in self.groups]

    def _layer(self, kind: Kind, how: str, n_blocks: int, block: tuple[int, ...]) -> LayerCache:
        nbytes = torch.Size(block).numel() * self.dtype.itemsize
        if how == "one":
            return kind.place(self._random(n_blocks, nbytes).view(self.dtype).view(n_blocks, *block))
        if how == "two":
            return tuple(cast("torch.Tensor", self._layer(kind, "one", n_blocks, block)) for _ in range(2))
        if how == "K and V first":
            return kind.place(self._random(2, n_blocks, nbytes).view(self.dtype).view(2, n_blocks, *block))
        assert how == "padded"
        padded = self._random(n_blocks, nbytes + 3 * 64)
        return kind.place(padded)[:, :nbytes]

    @staticmethod
    def _random(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)


LLAMA = (2, 16, 2, 32)
SHAPES = {
    "one tensor a layer": Shape((("one", 3, LLAMA),), torch.bfloat16),
    "K and V apart": Shape((("two", 2, (16, 2, 32)),), torch.float16),
    "K and V first": Shape((("K and V first", 2, (16, 2, 32)),), torch.float32, block_dim=1),
    "padded rows": Shape((("padded", 3, (4096,)),)),
    "groups with other pages": Shape((("one", 2, (16, 64)), ("two", 1, (8, 24)), ("padded", 1, (192,)))),
    "large blocks": Shape((("one", 2, (16, 64)), ("one", 3, (16, 24))), factor=4),
    "fp8": Shape((("one", 2, (16, 128)),), torch.float8_e4m3fn, factor=2),
    "odd bytes": Shape((("one", 2, (7, 5)), ("two", 2, (3,))), factor=2),
}


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", SHAPES)
async def test_round_trips_of_every_layout(kind: Kind, name: str, by_layer: bool) -> None:
    shape, n_blocks = SHAPES[name], 24
    caches = split_layers(shape.make(kind, n_blocks), shape.block_dim)
    tensors = tensors_of(caches)
    groups = tuple(KVGroup(tuple(tensor[0].nbytes for tensor in group)) for group in tensors)
    layout = KVLayout("m", "bytes", 16, groups, block_size_factor=shape.factor)
    region = kind.region(16 * len(groups), layout.block_bytes)
    handler = DeviceHostHandler(
        caches, region, layout, device=kind.device(region, *(t for group in tensors for t in group))
    )
    before = [[_bytes_of(tensor) for tensor in group] for group in tensors]
    chance = random.Random(name)
    # The first block begins part-way into an offloaded block, and the last one ends part-way.
    sizes = [shape.factor * 3 - 1 for _ in groups]
    first = [shape.factor - 1 for _ in groups]
    n_slots = [-(-(start + size) // shape.factor) for start, size in zip(first, sizes, strict=True)]
    stored = [chance.sample(range(n_blocks), size) for size in sizes]
    loaded = [chance.sample(range(n_blocks), size) for size in sizes]
    slots = CPULoadStoreSpec(chance.sample(range(region.n_slots), sum(n_slots)))
    try:
        source = GPULoadStoreSpec([b for blocks in stored for b in blocks], sizes, first)
        await handler.transfer(1, (source, slots))
        for group in tensors:
            for tensor in group:
                tensor.view(torch.uint8).fill_(POISON)
        kind.compute_ends()
        target = GPULoadStoreSpec([b for blocks in loaded for b in blocks], sizes, first)
        transfer = handler.submit(2, (slots, target), by_layer=by_layer)
        if by_layer:
            for layer in range(sum(map(len, caches))):
                await transfer.layer(layer)
        assert (await transfer).success
    finally:
        await handler.aclose()
    for g, group in enumerate(tensors):
        for tensor, old in zip(group, before[g], strict=True):
            new, expected = _bytes_of(tensor), torch.full_like(old, POISON)
            expected[loaded[g]] = old[stored[g]]
            assert torch.equal(new, expected)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).view(len(tensor), -1).cpu().clone()


@pytest.mark.parametrize("padding", [0, 64])
async def test_nothing_beside_the_named_pages_is_written(kind: Kind, padding: int) -> None:
    storage = torch.zeros(8, PAGE + padding, dtype=torch.uint8)
    placed = kind.place(storage)
    region = kind.region(8, PAGE)
    region.tensor.fill_(1)
    layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))
    handler = DeviceHostHandler([[placed[:, :PAGE]]], region, layout, device=kind.device(region, placed))
    try:
        await handler.transfer(1, load([3, 4, 5], [2, 3, 6]))
    finally:
        await handler.aclose()
    expected = torch.zeros(8, PAGE + padding, dtype=torch.uint8)
    expected[[2, 3, 6], :PAGE] = 1
    assert torch.equal(placed.cpu(), expected)
    assert bool((region.tensor == 1).all())


# ---- what is refused


BAD = [
    (store([8], [0]), "device block 8 does not exist"),
    (store([0], [9]), "slot 9 does not exist"),
    (store([0, 1], [3, 3]), "slot 3 is a destination twice"),
    (load([0, 1], [5, 5]), "device block 5 is a destination twice"),
    (load([0], [8]), "device block 8 does not exist"),
    (store([0, 1], [3]), "but 1 slots are given"),
    ((CPULoadStoreSpec([0]), CPULoadStoreSpec([1])), "not CPU to CPU"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
async def test_a_bad_spec_is_refused_before_anything_is_launched(
    kind: Kind, spec: tuple[GPULoadStoreSpec, CPULoadStoreSpec], message: str
) -> None:
    rig = Rig(kind, 8)
    try:
        with pytest.raises(InvalidArgument, match=message):
            rig.handler.submit(1, spec)
        assert sum(count.batches for count in rig.handler.engines().values()) == 0
        assert rig.holds() == 0
    finally:
        await rig.handler.aclose()


def test_tensors_that_the_device_does_not_reach_are_refused(kind: Kind) -> None:
    region = kind.region(8, PAGE)
    layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))
    device = kind.device(region)
    try:
        with pytest.raises(InvalidArgument, match="lies on meta"):
            DeviceHostHandler([[torch.zeros(8, PAGE, dtype=torch.uint8, device="meta")]], region, layout, device=device)
    finally:
        device.close()


# ---- order against compute


async def test_a_store_behind_slow_compute_reads_what_it_writes(kind: Kind) -> None:
    rig = Rig(kind, 8)
    try:
        with kind.slow_compute():
            kind.compute_fills(rig.cache[2], 77)
            transfer = rig.handler.submit(1, store([2], [5]))
        assert (await transfer).success
        assert rig.is_filled(rig.slots[5], 77)
    finally:
        await rig.handler.aclose()


async def test_a_load_does_not_overtake_compute_that_still_reads_its_destination(kind: Kind) -> None:
    rig = Rig(kind, 8)
    try:
        with kind.slow_compute():
            kind.compute_copies(rig.cache[2], rig.cache[6])
            transfer = rig.handler.submit(1, load([0], [2]))
        assert (await transfer).success
        assert rig.is_filled(rig.block(6), 2)
        assert rig.is_filled(rig.block(2), CANARY)
    finally:
        await rig.handler.aclose()


@pytest.mark.parametrize("by_layer", [False, True])
async def test_compute_behind_a_load_sees_it(kind: Kind, by_layer: bool) -> None:
    rig = Rig(kind, 8)
    try:
        transfer = rig.handler.submit(1, load([0], [2]), by_layer=by_layer)
        kind.compute_waits(transfer.layer_event(0) if by_layer else transfer.event)
        kind.compute_copies(rig.cache[2], rig.cache[6])
        kind.compute_ends()
        assert rig.is_filled(rig.block(6), CANARY)
        assert (await transfer).success
    finally:
        await rig.handler.aclose()


async def test_a_store_and_a_load_of_the_same_slot_keep_their_order(kind: Kind) -> None:
    rig = Rig(kind, 8)
    try:
        with kind.slow_compute():
            kind.compute_fills(rig.cache[1], 99)
            rig.handler.submit(1, store([1], [4]))
            transfer = rig.handler.submit(2, load([4], [7]))
        assert (await transfer).success
        assert rig.is_filled(rig.block(7), 99)
    finally:
        await rig.handler.aclose()


# ---- many, cancelled, failing, closed


async def test_a_thousand_transfers_in_flight(kind: Kind) -> None:
    rig = Rig(kind, 1000, page=512)
    try:
        with kind.slow_compute():
            stores = [rig.handler.submit(n, store([n], [(n * 7) % 1000])) for n in range(1000)]
        assert all([(await transfer).success for transfer in stores])
        rig.cache.fill_(POISON)
        kind.compute_ends()
        loads = [rig.handler.submit(n, load([(n * 7) % 1000], [n])) for n in range(1000)]
        assert all([(await transfer).success for transfer in loads])
        assert torch.equal(rig.cache.cpu()[:, 0], (torch.arange(1000) % 251).to(torch.uint8))
        assert rig.holds() == 0
    finally:
        await rig.handler.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_after_a_cancelled_await_nothing_touches_the_memory(kind: Kind, seed: int) -> None:
    chance, n_blocks = random.Random(seed), 64
    rig = Rig(kind, n_blocks)
    late: list[int] = []

    async def one(job_id: int, block: int) -> None:
        owner = asyncio.create_task(rig.handler.transfer(job_id, store([block], [block])))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        owner.cancel()
        await asyncio.wait([owner])
        assert not rig.region.is_held(block)
        rig.slots[block].fill_(POISON)
        late.append(block)

    try:
        for round_ in range(6):
            with kind.slow_compute():
                pending = [asyncio.create_task(one(round_ * n_blocks + n, n)) for n in range(n_blocks)]
                await asyncio.sleep(0)
            await asyncio.gather(*pending)
        await rig.handler.wait(range(1000))
        assert len(late) == 6 * n_blocks
        assert rig.is_filled(rig.slots, POISON)
        assert rig.holds() == 0
    finally:
        await rig.handler.aclose()


async def test_a_copy_that_fails_fails_its_own_transfer_and_no_other(kind: Kind) -> None:
    rig: Rig

    def refuses(batch: object) -> bool:
        return int(batch.dst[0]) == rig.slots[3].data_ptr()  # type: ignore[attr-defined]

    rig = Rig(kind, 8, refuses=refuses)
    try:
        transfers = [rig.handler.submit(n, store([n], [n])) for n in range(8)]
        results = [await transfer for transfer in transfers]
        assert [result.success for result in results] == [n != 3 for n in range(8)]
        assert "the test refuses" in str(results[3].error)
        assert [rig.is_filled(rig.slots[n], n) for n in range(8)] == [n != 3 for n in range(8)]
        assert rig.holds() == 0
    finally:
        await rig.handler.aclose()


@pytest.mark.parametrize("drain", [False, True])
async def test_closing_with_transfers_in_flight(kind: Kind, drain: bool) -> None:
    rig = Rig(kind, 64)
    with kind.slow_compute():
        transfers = [rig.handler.submit(n, store([n], [n])) for n in range(64)]
        closing = asyncio.create_task(rig.handler.aclose(drain=drain))
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            rig.handler.submit(99, store([0], [0]))
    await closing
    assert all(transfer.done() for transfer in transfers)
    for n, transfer in enumerate(transfers):
        if transfer.result().success:
            assert rig.is_filled(rig.slots[n], n)
    if drain:
        assert all(transfer.result().success for transfer in transfers)
    assert rig.holds() == 0


def test_the_same_handler_under_a_second_loop_raises(kind: Kind) -> None:
    rig = Rig(kind, 8)

    async def use(job_id: int) -> None:
        await rig.handler.transfer(job_id, store([job_id], [job_id]))

    with asyncio.Runner() as first:
        first.run(use(1))
        with asyncio.Runner() as second, pytest.raises(WrongLoopError, match="another event loop"):
            second.run(use(2))
        first.run(rig.handler.aclose())


async def test_ten_thousand_transfers_use_up_nothing(kind: Kind) -> None:
    rig = Rig(kind, 64, page=64)
    try:
        used = []
        for round_ in range(10):
            for first in range(round_ * 1000, (round_ + 1) * 1000, 50):
                jobs = range(first, first + 50)
                for n in jobs:
                    rig.handler.submit(n, store([n % 64], [n % 64]) if n % 2 else load([n % 64], [n % 64]))
                await rig.handler.wait(jobs)
            assert len(rig.handler.get_finished()) == 1000
            used.append(kind.resources())
        assert used[-1] == used[1]
    finally:
        await rig.handler.aclose()


async def test_closing_gives_everything_back(kind: Kind) -> None:
    before = kind.resources()
    rig = Rig(kind, 64)
    for n in range(64):
        await rig.handler.transfer(n, store([n], [n]))
    await rig.handler.aclose()
    rig.region.close()
    assert kind.resources() == before
