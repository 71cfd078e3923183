"""Every byte of every layout against a model that copies page by page with plain loops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.device_host import DeviceHostHandler

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    factor: int
    pages: tuple[tuple[int, ...], ...]
    padding: int
    n_blocks: int
    sizes: tuple[int, ...]
    indices: tuple[int, ...]
    seed: int

    @property
    def layout(self) -> KVLayout:
        return KVLayout("m", "uint8", 16, tuple(KVGroup(pages) for pages in self.pages), block_size_factor=self.factor)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    factor = draw(st.integers(1, 4))
    pages = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
    n_blocks = draw(st.integers(1, 9))
    return Case(
        factor=factor,
        pages=tuple(pages),
        padding=draw(st.sampled_from([0, 1, 7])),
        n_blocks=n_blocks,
        sizes=tuple(draw(st.integers(0, n_blocks)) for _ in pages),
        indices=tuple(draw(st.integers(0, 2 * factor)) for _ in pages),
        seed=draw(st.integers(0, 2**31)),
    )


def block_ids(rng: np.random.Generator, size: int, n_blocks: int) -> list[int]:
    """Distinct ids, half the time in runs of neighbours."""
    if rng.random() < 0.5:
        start = int(rng.integers(0, n_blocks - size + 1))
        return list(range(start, start + size))
    return [int(block) for block in rng.permutation(n_blocks)[:size]]


def padded(n_blocks: int, page: int, padding: int, rng: np.random.Generator) -> torch.Tensor:
    storage = torch.from_numpy(rng.integers(0, 256, n_blocks * (page + padding), dtype=np.uint8))
    return storage.as_strided((n_blocks, page), (page + padding, 1))


def storage_of(tensor: torch.Tensor) -> Bytes:
    flat: Bytes = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    return flat


def slots_needed(size: int, index: int, factor: int) -> int:
    return -(-(index % factor + size) // factor) if size else 0


def model_copy(
    case: Case,
    caches: Sequence[Sequence[torch.Tensor]],
    region: Bytes,
    blocks: Sequence[Sequence[int]],
    slots: Sequence[Sequence[int]],
    *,
    store: bool,
) -> None:
    for group, layers in enumerate(caches):
        for i, block in enumerate(blocks[group]):
            entry = case.indices[group] % case.factor + i
            slot = region[slots[group][entry // case.factor]]
            at = entry % case.factor * sum(case.pages[group])
            for layer, page in zip(layers, case.pages[group], strict=True):
                if store:
                    slot[at : at + page] = layer[block].numpy()
                else:
                    layer[block] = torch.from_numpy(slot[at : at + page].copy())
                at += page


def clones(caches: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    return [
        [torch.from_numpy(storage_of(layer).copy()).as_strided(tuple(layer.shape), layer.stride()) for layer in layers]
        for layers in caches
    ]


@settings(max_examples=120, deadline=None)
@given(cases())
def test_stores_and_loads_move_the_named_bytes_and_no_others(case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    caches = [[padded(case.n_blocks, page, case.padding, rng) for page in pages] for pages in case.pages]
    counts = [slots_needed(n, index, case.factor) for n, index in zip(case.sizes, case.indices, strict=True)]
    region = HostRegion(sum(counts) + 3, case.layout.block_bytes + 5)
    memory = region.tensor.numpy()
    memory[:] = rng.integers(0, 256, memory.shape, dtype=np.uint8)
    stored = [block_ids(rng, size, case.n_blocks) for size in case.sizes]
    loaded = [block_ids(rng, size, case.n_blocks) for size in case.sizes]
    slots = [int(slot) for slot in rng.permutation(region.n_slots)[: sum(counts)]]
    slots_by_group = [part.tolist() for part in np.split(np.array(slots, dtype=int), np.cumsum(counts)[:-1])]
    expected_region, expected_caches = memory.copy(), clones(caches)
    model_copy(case, caches, expected_region, stored, slots_by_group, store=True)
    model_copy(case, expected_caches, expected_region, loaded, slots_by_group, store=False)

    handler = DeviceHostHandler(caches, region, case.layout)
    try:
        host = CPULoadStoreSpec(slots)
        handler.submit(1, (GPULoadStoreSpec(chain(*stored), case.sizes, case.indices), host))
        handler.submit(2, (host, GPULoadStoreSpec(chain(*loaded), case.sizes, case.indices)))
        handler.synchronize([1, 2])
        results = sorted(handler.get_finished(), key=lambda result: result.job_id)
    finally:
        asyncio.run(handler.aclose())

    moved = sum(size * sum(pages) for size, pages in zip(case.sizes, case.pages, strict=True))
    assert [(r.job_id, r.success, r.transfer_size) for r in results] == [(1, True, moved), (2, True, moved)]
    assert np.array_equal(memory, expected_region)
    for layers, expected_layers in zip(caches, expected_caches, strict=True):
        for layer, expected in zip(layers, expected_layers, strict=True):
            assert np.array_equal(storage_of(layer), storage_of(expected))
    assert not any(region.is_held(slot) for slot in range(region.n_slots))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn]
)
async def test_any_element_type_and_any_shape_of_a_block(dtype: torch.dtype) -> None:
    cache = torch.randint(0, 2, (6, 2, 4, 3), dtype=torch.uint8).to(dtype)
    page = cache[0].nbytes
    layout = KVLayout("m", str(dtype), 16, (KVGroup((page,)),))
    handler = DeviceHostHandler([[cache]], HostRegion(4, page), layout)
    try:
        await handler.transfer(1, (GPULoadStoreSpec([1, 2]), CPULoadStoreSpec([3, 0])))
        await handler.transfer(2, (CPULoadStoreSpec([3, 0]), GPULoadStoreSpec([4, 5])))
    finally:
        await handler.aclose()
    assert torch.equal(cache[4:].view(torch.uint8), cache[1:3].view(torch.uint8))


async def test_layers_carved_block_by_block_from_one_buffer() -> None:
    packed = torch.randint(0, 256, (6, 3, 32), dtype=torch.uint8)
    before = packed.clone()
    layout = KVLayout("m", "uint8", 16, (KVGroup((32, 32, 32)),))
    handler = DeviceHostHandler([[packed[:, layer] for layer in range(3)]], HostRegion(6, 96), layout)
    try:
        await handler.transfer(1, (GPULoadStoreSpec(range(6)), CPULoadStoreSpec(range(6))))
        packed.zero_()
        await handler.transfer(2, (CPULoadStoreSpec(range(6)), GPULoadStoreSpec(range(6))))
    finally:
        await handler.aclose()
    assert torch.equal(packed, before)
