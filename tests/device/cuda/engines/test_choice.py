"""What is launched in which way, what is counted and told, and what takes over when a way does not work."""

from __future__ import annotations

import importlib.util
import logging
from typing import get_args

import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.choosing import Thresholds
from asyncoffload.device.cuda.engines.compiled_kernel import Code, CompiledKernel
from asyncoffload.errors import DeviceError, InvalidArgument
from tests.device.cuda.engines.rig import Scattered, fake_compiler, scattered
from tests.device.cuda.fake import Fake

KIB = 1024
PAGES = [4 * KIB] * 100
WHOLE_RUN = len(PAGES)
both_ways = pytest.mark.parametrize("direction", get_args(Direction))


def _choice(driver: Driver, *, pinned: bool = True, **options: object) -> EngineChoice:
    kernel = CompiledKernel(driver, 0, compiler=fake_compiler)
    settings: dict[str, object] = {"kernel": kernel, "staging_bytes": 512 * KIB} | options
    return EngineChoice(driver, 0, pinned=pinned, **settings)  # type: ignore[arg-type]


def _broken(capability: int, paired: bool) -> Code:
    raise DeviceError(f"nothing can be compiled for {capability}, {paired}")


def _used(choice: EngineChoice) -> list[str]:
    return [name for name, count in choice.counts().items() if count.batches]


@pytest.mark.parametrize(
    ("sizes", "run", "skew", "direction", "name"),
    [
        ([64 * KIB] * 40, 8, 0, "load", "batched"),
        ([64 * KIB] * 40, 8, 0, "store", "batched"),
        (PAGES, WHOLE_RUN, 0, "load", "staged"),
        (PAGES, 2, 0, "load", "kernel"),
        (PAGES, WHOLE_RUN, 0, "store", "kernel"),
        (PAGES, WHOLE_RUN, 4, "load", "batched"),
        ([4100] * 100, WHOLE_RUN, 0, "store", "batched"),
        ([4 * KIB] * 10, 10, 0, "load", "batched"),
    ],
)
def test_each_batch_goes_the_way_that_suits_it(
    driver: Driver, sizes: list[int], run: int, skew: int, direction: Direction, name: str
) -> None:
    choice = _choice(driver)
    with scattered(driver, sizes, run=run, skew=skew) as fragments:
        fragments.round_trip(choice, direction)
    assert _used(choice) == [name]
    assert choice.counts()[name] == EngineCount(1, len(sizes), sum(sizes))
    assert list(choice.reasons()) == [(direction, name)]
    assert name in repr(choice)
    choice.close()


@both_ways
@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_batch_exactly_its_bytes_arrive(driver: Driver, seed: int, direction: Direction) -> None:
    rng = np.random.default_rng(seed)
    unit, skew = int(rng.choice([1, 8, 16])), int(rng.choice([0, 8, 3]))
    longest = int(rng.choice([64, 4 * KIB, 40 * KIB]))
    sizes = (rng.integers(0, longest // unit + 1, rng.integers(1, 300)) * unit).tolist()
    thresholds = Thresholds(
        few_fragments=int(rng.choice([0, 32])),
        long_host_run=int(rng.choice([0, 64 * KIB])),
        stage_loads=bool(rng.integers(2)),
        stage_stores=bool(rng.integers(2)),
    )
    choice = _choice(driver, thresholds=thresholds, staging_bytes=128 * KIB)
    with scattered(driver, sizes, run=int(rng.integers(1, 40)), skew=skew, seed=seed) as fragments:
        fragments.round_trip(choice, direction)
        fragments.round_trip(choice, direction)
    assert sum(count.nbytes for count in choice.counts().values()) == 2 * sum(sizes)
    choice.close()


@both_ways
@pytest.mark.parametrize("name", ["batched", "plain", "kernel", "staged"])
def test_a_way_can_be_forced(driver: Driver, name: str, direction: Direction) -> None:
    choice = _choice(driver, force=name)
    with scattered(driver, [64 * KIB] * 3 + [8]) as fragments:
        choice.prepare(fragments.stream, direction)
        fragments.round_trip(choice, direction)
    assert _used(choice) == [name]
    assert "only" in repr(choice)
    assert choice.explain(direction, fragment_bytes=1, n_fragments=1).name == name
    choice.close()


def test_forcing_what_is_not_there_names_what_is(driver: Driver) -> None:
    with pytest.raises(InvalidArgument, match=r"'torch'.*batched, plain, kernel, staged"):
        _choice(driver, force="torch")
    with pytest.raises(InvalidArgument, match="only batched, plain"):
        _choice(driver, pinned=False, force="kernel")


@pytest.mark.parametrize("name", ["kernel", "staged"])
def test_a_forced_way_that_does_not_work_is_an_error(driver: Driver, name: str) -> None:
    choice = _choice(driver, force=name, kernel=CompiledKernel(driver, 0, compiler=_broken))
    with scattered(driver, PAGES) as fragments:
        with pytest.raises(DeviceError, match="nothing can be compiled"):
            choice.prepare(fragments.stream, "load")
        with pytest.raises(DeviceError, match="nothing can be compiled"):
            choice.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)


@both_ways
@pytest.mark.parametrize("prepared", [False, True])
def test_a_kernel_that_cannot_be_compiled_is_given_up_with_one_warning(
    driver: Driver, caplog: pytest.LogCaptureFixture, prepared: bool, direction: Direction
) -> None:
    choice = _choice(driver, kernel=CompiledKernel(driver, 0, compiler=_broken))
    with caplog.at_level(logging.WARNING), scattered(driver, PAGES, run=2) as fragments:
        for _ in range(3):
            if prepared:
                choice.prepare(fragments.stream, direction)
            fragments.round_trip(choice, direction)
    assert _used(choice) == ["batched"]
    assert choice.available == ("batched", "plain")
    assert set(choice.given_up) == {"kernel", "staged"}
    assert "nothing can be compiled" in caplog.text
    assert len(caplog.records) == 1
    assert "no kernel" in choice.reasons()[direction, "batched"]
    assert "without kernel, staged" in repr(choice)
    choice.close()


@pytest.mark.parametrize("after", [0, 1])
def test_a_launch_that_is_refused_part_way_is_made_good_by_the_driver(fake: Fake, driver: Driver, after: int) -> None:
    choice = _choice(driver, staging_bytes=128 * KIB)
    with scattered(driver, PAGES, run=WHOLE_RUN) as fragments:
        choice.prepare(fragments.stream, "load")
        fake.fail_next("cuLaunchKernel", 1, after=after, times=20)
        fragments.round_trip(choice, "load")
    assert _used(choice) == ["batched"]
    choice.close()
    assert fake.count("pinned_bytes") == 0


def test_without_memory_for_staging_a_kernel_reads_the_host(fake: Fake, driver: Driver) -> None:
    choice = _choice(driver)
    with scattered(driver, PAGES, run=WHOLE_RUN) as fragments:
        choice.launch(fragments.batch("store"), fragments.stream, direction="store", source_final=False)
        fake.fail_next("cuMemAlloc_v2", 2)
        choice.prepare(fragments.stream, "load")
        fragments.round_trip(choice, "load")
    assert choice.available == ("batched", "plain", "kernel")
    assert _used(choice) == ["kernel"]
    choice.close()


def test_while_all_descriptors_are_in_use_the_driver_copies(driver: Driver) -> None:
    choice = _choice(driver, descriptor_bytes=200 << 10)
    with scattered(driver, [8] * 5000) as fragments:
        held = choice.launch(fragments.batch("store"), fragments.stream, direction="store", source_final=False)
        fragments.round_trip(choice, "store")
        assert _used(choice) == ["batched", "kernel"]
        assert held is not None
        held.release()
        fragments.round_trip(choice, "store")
    assert choice.counts()["kernel"].batches == 2
    assert not choice.given_up
    choice.close()


def test_an_error_of_a_lost_device_is_no_reason_to_try_another_way(fake: Fake, driver: Driver) -> None:
    choice = _choice(driver)
    with scattered(driver, PAGES, run=2) as fragments:
        choice.prepare(fragments.stream, "load")
        fake.fail_next("cuLaunchKernel", 719)
        with pytest.raises(DeviceError) as failure:
            choice.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        assert failure.value.lost
    assert not choice.given_up
    assert not _used(choice)


def test_a_copy_that_the_driver_refuses_is_the_copys_own_failure(fake: Fake, driver: Driver) -> None:
    choice = _choice(driver)
    with scattered(driver, [64 * KIB] * 4) as fragments:
        fake.fail_next("cuMemcpyBatchAsync", 1)
        with pytest.raises(DeviceError, match="cuMemcpyBatchAsync"):
            choice.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        fragments.round_trip(choice, "load")
    assert choice.counts()["batched"].batches == 1


@both_ways
def test_what_no_way_can_copy_speaks_against_none_of_them(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, direction: Direction
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("these addresses cannot be copied", code=1)

    choice = _choice(driver, thresholds=Thresholds(stage_stores=True), descriptor_bytes=800 << 10)
    with caplog.at_level(logging.WARNING), scattered(driver, PAGES, run=WHOLE_RUN) as fragments:
        choice.prepare(fragments.stream, direction)
        with monkeypatch.context() as patch:
            patch.setattr(driver, "copy_batch", refuse)
            for _ in range(20):
                with pytest.raises(DeviceError, match="these addresses"):
                    choice.launch(fragments.batch(direction), fragments.stream, direction=direction, source_final=True)
        fragments.round_trip(choice, direction)
    assert not choice.given_up
    assert not caplog.records
    assert _used(choice) == ["staged"]
    choice.close()


def test_a_driver_that_knows_batches_but_does_not_do_them_copies_one_by_one(fake: Fake, driver: Driver) -> None:
    choice = _choice(driver)
    with scattered(driver, [64 * KIB] * 4) as fragments:
        fake.fail_next("cuMemcpyBatchAsync", 801)
        fragments.round_trip(choice, "load")
    assert _used(choice) == ["plain"]
    assert "batched" in choice.given_up
    choice.close()


@both_ways
def test_an_old_driver_copies_one_by_one(fake: Fake, driver: Driver, direction: Direction) -> None:
    fake.set_driver_version(12040)
    old = Driver(fake.library)
    choice = _choice(old)
    assert choice.available == ("plain", "kernel", "staged")
    with scattered(driver, [64 * KIB] * 4) as fragments:
        fragments.round_trip(choice, direction)
    with scattered(driver, PAGES, run=WHOLE_RUN) as fragments:
        fragments.round_trip(choice, direction)
    assert _used(choice) == ["plain", "staged" if direction == "load" else "kernel"]
    choice.close()


def test_pageable_memory_is_copied_one_by_one(driver: Driver) -> None:
    choice = _choice(driver, pinned=False)
    with scattered(driver, PAGES) as fragments:
        choice.prepare(fragments.stream, "load")
        fragments.round_trip(choice, "load")
    assert _used(choice) == ["plain"]
    assert "not pinned" in choice.reasons()["load", "plain"]
    choice.close()


def test_where_host_addresses_are_not_the_devices_there_is_no_kernel(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "attribute", lambda *_: 0)
    assert _choice(driver).available == ("batched", "plain")


def test_thresholds_decide_and_can_be_told(driver: Driver) -> None:
    thresholds = Thresholds(load_large_fragment=4 * KIB)
    choice = _choice(driver, thresholds=thresholds)
    assert choice.thresholds is thresholds
    large = choice.explain("load", fragment_bytes=4 * KIB, n_fragments=1000)
    small = choice.explain("load", fragment_bytes=2 * KIB, n_fragments=1000)
    scattered_host = choice.explain("load", fragment_bytes=2 * KIB, n_fragments=1000, host_run_bytes=2 * KIB)
    assert [large.name, small.name, scattered_host.name] == ["batched", "staged", "kernel"]


def test_an_empty_batch_is_nobodys(driver: Driver) -> None:
    choice = _choice(driver)
    nothing = CopyBatch(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    with scattered(driver, [8]) as fragments:
        assert choice.launch(nothing, fragments.stream, direction="load", source_final=False) is None
    assert not _used(choice)


def test_torch_copies_are_there_for_the_tensors_that_are_named(driver: Driver) -> None:
    choice = _choice(driver, tensors=[torch.zeros(8)])
    assert "torch" in choice.available
    choice.close()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_by_default_triton_compiles_the_kernel_for_the_device(driver: Driver) -> None:
    choice = EngineChoice(driver, 0, pinned=True)
    with scattered(driver, PAGES, run=WHOLE_RUN) as fragments:
        for direction in get_args(Direction):
            choice.prepare(fragments.stream, direction)
            fragments.round_trip(choice, direction)
    assert not choice.given_up
    assert sorted(_used(choice)) == ["kernel", "staged"]
    choice.close()


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
def test_without_triton_the_default_is_to_do_without_kernels(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    choice = EngineChoice(driver, 0, pinned=True)
    with caplog.at_level(logging.WARNING), scattered(driver, PAGES) as fragments:
        choice.prepare(fragments.stream, "load")
        fragments.round_trip(choice, "load")
    assert _used(choice) == ["batched"]
    assert "is a triton installed" in caplog.text
    choice.close()


def test_nothing_grows_over_ten_thousand_batches(fake: Fake, driver: Driver) -> None:
    choice = _choice(driver)
    with (
        scattered(driver, [64] * 40, run=40) as small,
        scattered(driver, [64 * KIB] * 2) as large,
        scattered(driver, [8 * KIB] * 40, run=40) as pages,
    ):

        def all_once() -> None:
            for fragments in (small, large, pages):
                _launch_both_ways(choice, fragments)
            driver.synchronize_stream(small.stream)
            driver.synchronize_stream(large.stream)
            driver.synchronize_stream(pages.stream)

        all_once()
        kinds = ("streams", "events", "device_bytes", "pinned_bytes", "modules")
        before = [fake.count(kind) for kind in kinds]
        for _ in range(1700):
            all_once()
        assert [fake.count(kind) for kind in kinds] == before
        assert sum(count.batches for count in choice.counts().values()) == 6 * 1701
        assert sorted(_used(choice)) == ["batched", "kernel", "staged"]
    choice.close()
    choice.close()
    assert [fake.count(kind) for kind in ("device_bytes", "pinned_bytes", "modules")] == [0, 0, 0]


def _launch_both_ways(choice: EngineChoice, fragments: Scattered) -> None:
    for direction in get_args(Direction):
        batch = fragments.batch(direction)
        reservation = choice.launch(batch, fragments.stream, direction=direction, source_final=False)
        fragments._driver.synchronize_stream(fragments.stream)
        if reservation is not None:
            reservation.release()
