"""Every way of copying on a real device: the bytes, both ways, whatever their sizes and addresses."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.compiled_kernel import CompiledKernel
from asyncoffload.device.cuda.engines.staged import STAGING_BYTES
from tests.device.cuda.engines.rig import scattered

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

KIB, MIB = 1 << 10, 1 << 20
BY_DRIVER = ("batched", "plain")
BY_KERNEL = ("kernel", "staged")
HAS_TRITON = importlib.util.find_spec("triton") is not None

both_ways = pytest.mark.parametrize("direction", get_args(Direction))
every_way = pytest.mark.parametrize(
    "name",
    [
        *BY_DRIVER,
        *(
            pytest.param(name, marks=pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"))
            for name in BY_KERNEL
        ),
    ],
)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    context = driver.retain_primary_context(0)
    previous = driver.bind(context)
    yield driver
    driver.bind(previous)
    driver.release_primary_context(0)


def _forced(driver: Driver, name: str) -> EngineChoice:
    if name == "batched" and not driver.has_batched_copy:
        pytest.skip(f"{driver} has no batched copies")
    return EngineChoice(driver, 0, pinned=True, force=name)


@both_ways
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("fragment", [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB])
@every_way
def test_fragments_arrive_and_nothing_else_changes(
    driver: Driver, name: str, fragment: int, registered: bool, direction: Direction
) -> None:
    choice = _forced(driver, name)
    with scattered(driver, [fragment] * (24 * MIB // fragment), run=32, registered=registered) as fragments:
        choice.prepare(fragments.stream, direction)
        for _ in range(3):
            fragments.round_trip(choice, direction)
    assert choice.counts()[name].batches == 3
    choice.close()


@both_ways
@pytest.mark.parametrize("skew", [0, 8])
@every_way
def test_uneven_fragments_of_whole_words_arrive(driver: Driver, name: str, skew: int, direction: Direction) -> None:
    sizes = (8 * np.random.default_rng(1).integers(1, 20_000, 300)).tolist()
    choice = _forced(driver, name)
    with scattered(driver, sizes, skew=skew) as fragments:
        fragments.round_trip(choice, direction)
    choice.close()


@both_ways
@pytest.mark.parametrize("name", BY_DRIVER)
def test_fragments_of_any_address_and_length_arrive(driver: Driver, name: str, direction: Direction) -> None:
    sizes = np.random.default_rng(1).integers(1, 100_000, 300).tolist()
    choice = _forced(driver, name)
    with scattered(driver, sizes, skew=3) as fragments:
        fragments.round_trip(choice, direction)
    choice.close()


@both_ways
@pytest.mark.parametrize("sizes", [[4 * KIB] * 3000, [64 * KIB] * 300, [8 * KIB] * 5, [4100, 33] * 500])
def test_whatever_is_chosen_the_bytes_arrive(driver: Driver, sizes: list[int], direction: Direction) -> None:
    choice = EngineChoice(driver, 0, pinned=True)
    with scattered(driver, sizes, run=64) as fragments:
        choice.prepare(fragments.stream, direction)
        for _ in range(3):
            fragments.round_trip(choice, direction)
    assert not choice.given_up or not HAS_TRITON
    choice.close()


@both_ways
@every_way
def test_tens_of_thousands_of_fragments_at_once_arrive(driver: Driver, name: str, direction: Direction) -> None:
    """Drivers have crashed on batches of this size, and have hung when they were repeated."""
    choice = _forced(driver, name)
    with scattered(driver, [512] * 60_000, run=64) as fragments:
        for _ in range(3):
            fragments.round_trip(choice, direction)
    choice.close()


@needs_triton
def test_the_kernel_compiles_for_this_device_and_passes_its_trial(driver: Driver) -> None:
    kernel = CompiledKernel(driver, 0)
    kernel.warm_up()
    kernel.close()


@needs_triton
@pytest.mark.parametrize("programs", [1, 2, 8, 48])
def test_any_number_of_blocks_of_threads_copies_the_same(driver: Driver, programs: int) -> None:
    kernel = CompiledKernel(driver, 0, host_programs=programs, device_programs=programs)
    choice = EngineChoice(driver, 0, pinned=True, force="kernel", kernel=kernel)
    with scattered(driver, [4 * KIB] * 999) as fragments:
        fragments.round_trip(choice, "load")
        fragments.round_trip(choice, "store")
    choice.close()


@needs_triton
def test_descriptors_of_queued_batches_are_kept_apart(driver: Driver) -> None:
    choice = EngineChoice(driver, 0, pinned=True, force="kernel")
    with scattered(driver, [4 * KIB] * 500, seed=1) as one, scattered(driver, [4 * KIB] * 500, seed=2) as other:
        for fragments in (one, other):
            fragments.fill("load")
        reservations = [
            choice.launch(fragments.batch("load"), one.stream, direction="load", source_final=True)
            for fragments in (one, other)
        ]
        driver.synchronize_stream(one.stream)
        one.check("load")
        other.check("load")
        for reservation in reservations:
            assert reservation is not None
            reservation.release()
    choice.close()


@every_way
def test_launching_beside_a_capture_spoils_neither(driver: Driver, name: str) -> None:
    choice = _forced(driver, name)
    with scattered(driver, [4 * KIB] * 500) as fragments:
        choice.prepare(fragments.stream, "load")
        fragments.fill("load")
        values, graph = torch.zeros(16, device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            values += 1
            batch = fragments.batch("load")
            reservation = choice.launch(batch, fragments.stream, direction="load", source_final=False)
        fragments.check("load")
        graph.replay()
        torch.cuda.synchronize()
        assert values.tolist() == [1.0] * 16
        if reservation is not None:
            reservation.release()
    choice.close()


@both_ways
def test_torch_copies_pages_of_tensors(driver: Driver, direction: Direction) -> None:
    n, page = 64, 64 * KIB
    host = torch.randint(0, 256, (n, page), dtype=torch.uint8).pin_memory()
    device = torch.randint(0, 256, (n, page), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    choice = EngineChoice(driver, 0, pinned=True, force="torch", tensors=[host, device])
    order = torch.randperm(n)
    on_device = device.data_ptr() + order.numpy() * page
    on_host = host.data_ptr() + np.arange(n) * page
    dst, src = (on_host, on_device) if direction == "store" else (on_device, on_host)
    stream = driver.create_stream()
    choice.launch(
        CopyBatch(dst, src, np.full(n, page, dtype=np.int64)), stream, direction=direction, source_final=False
    )
    driver.synchronize_stream(stream)
    driver.destroy_stream(stream)
    assert torch.equal(device.cpu()[order], host)
    choice.close()


def test_closing_gives_all_memory_back(driver: Driver) -> None:
    with scattered(driver, [4 * KIB] * 500, run=500) as fragments:
        before = torch.cuda.mem_get_info()[0]
        choice = EngineChoice(driver, 0, pinned=True)
        for direction in get_args(Direction):
            choice.prepare(fragments.stream, direction)
            fragments.round_trip(choice, direction)
        choice.close()
        assert before - torch.cuda.mem_get_info()[0] < STAGING_BYTES // 2
