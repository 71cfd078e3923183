"""Every way of copying moves exactly the bytes it was given, both ways; over the fake driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.driver import MAX_COPIES_PER_CALL, Driver
from asyncoffload.device.cuda.engines.base import CopyEngine
from asyncoffload.device.cuda.engines.compiled_kernel import CompiledKernel
from asyncoffload.device.cuda.engines.descriptors import DescriptorPool
from asyncoffload.device.cuda.engines.driver_copies import BatchedEngine, PlainEngine
from asyncoffload.device.cuda.engines.kernel import KernelEngine
from asyncoffload.device.cuda.engines.staged import StagedEngine
from asyncoffload.device.cuda.engines.staging import SLOTS
from asyncoffload.errors import CapacityError, DeviceError, InvalidArgument
from tests.device.cuda.engines.rig import POISON, fake_compiler, scattered
from tests.device.cuda.fake import Fake, memory

KIB = 1024
STAGING_BYTES = 64 * KIB

MakeEngine = Callable[[Driver], CopyEngine]


def _kernel(driver: Driver) -> CompiledKernel:
    return CompiledKernel(driver, 0, compiler=fake_compiler)


def _kernel_engine(driver: Driver) -> KernelEngine:
    return KernelEngine(_kernel(driver), DescriptorPool(driver))


def _staged_engine(driver: Driver, seams: Sequence[int] = ()) -> StagedEngine:
    kernel, pool, runs = _kernel(driver), DescriptorPool(driver), BatchedEngine(driver)
    return StagedEngine(driver, kernel, pool, runs, staging_bytes=STAGING_BYTES, seams=seams)


BY_DRIVER: list[MakeEngine] = [BatchedEngine, PlainEngine]
BY_KERNEL: list[MakeEngine] = [_kernel_engine, _staged_engine]
both_ways = pytest.mark.parametrize("direction", get_args(Direction))


def _sizes(kind: str) -> list[int]:
    rng = np.random.default_rng(7)
    match kind:
        case "small":
            return [4 * KIB] * 100
        case "one":
            return [8]
        case "large":
            return [48 * KIB] * 5 + [STAGING_BYTES]
        case "many":
            return [16] * (2 * MAX_COPIES_PER_CALL + 5)
        case "very many":
            return [8] * 9000
        case _:
            return [8 * words for words in rng.integers(1, 2000, 60).tolist()]


@both_ways
@pytest.mark.parametrize("sizes", ["one", "small", "large", "uneven", "many", "very many"])
@pytest.mark.parametrize("make", [*BY_DRIVER, *BY_KERNEL])
def test_scattered_fragments_arrive_and_nothing_else_changes(
    driver: Driver, make: MakeEngine, sizes: str, direction: Direction
) -> None:
    if sizes in ("many", "very many") and make is PlainEngine:
        pytest.skip("one call per fragment; fewer show the same")
    engine = make(driver)
    with scattered(driver, _sizes(sizes)) as fragments:
        for _ in range(2):
            fragments.round_trip(engine, direction)
    engine.close()


@both_ways
@pytest.mark.parametrize("make", BY_DRIVER)
def test_driver_copies_take_any_address_and_length(driver: Driver, make: MakeEngine, direction: Direction) -> None:
    with scattered(driver, [1, 7, 4097, 13, 65_537], skew=3) as fragments:
        fragments.round_trip(make(driver), direction)


@both_ways
@pytest.mark.parametrize("skew", [8, 0])
@pytest.mark.parametrize("make", BY_KERNEL)
def test_kernels_take_multiples_of_eight(driver: Driver, make: MakeEngine, skew: int, direction: Direction) -> None:
    with scattered(driver, [24, 8, 4104, 12_296], skew=skew) as fragments:
        fragments.round_trip(make(driver), direction)


@both_ways
@pytest.mark.parametrize(("skew", "nbytes"), [(4, 16), (0, 12)])
@pytest.mark.parametrize("make", BY_KERNEL)
def test_kernels_refuse_anything_else_before_they_queue_it(
    fake: Fake, driver: Driver, make: MakeEngine, skew: int, nbytes: int, direction: Direction
) -> None:
    engine = make(driver)
    with scattered(driver, [nbytes] * 4, skew=skew) as fragments:
        engine.prepare(fragments.stream, direction)
        before = len(fake.executed())
        with pytest.raises(InvalidArgument, match="multiple of 8"):
            engine.launch(fragments.batch(direction), fragments.stream, direction=direction, source_final=False)
        driver.synchronize_stream(fragments.stream)
        assert len(fake.executed()) == before


@both_ways
@pytest.mark.parametrize("make", [*BY_DRIVER, *BY_KERNEL])
def test_an_empty_batch_queues_nothing(fake: Fake, driver: Driver, make: MakeEngine, direction: Direction) -> None:
    engine = make(driver)
    nothing = CopyBatch(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    with scattered(driver, [8]) as fragments:
        engine.prepare(fragments.stream, direction)
        before = len(fake.executed())
        reservation = engine.launch(nothing, fragments.stream, direction=direction, source_final=False)
        driver.synchronize_stream(fragments.stream)
        assert len(fake.executed()) == before
    if reservation is not None:
        reservation.release()


@both_ways
@pytest.mark.parametrize("make", [*BY_DRIVER, *BY_KERNEL])
def test_nothing_waits_for_the_copies(fake: Fake, driver: Driver, make: MakeEngine, direction: Direction) -> None:
    engine = make(driver)
    with scattered(driver, _sizes("small")) as fragments:
        engine.prepare(fragments.stream, direction)
        fragments.fill(direction)
        fake.hold(fragments.stream)
        reservation = engine.launch(
            fragments.batch(direction), fragments.stream, direction=direction, source_final=False
        )
        destination = fragments.device_address if direction == "load" else fragments.host_address
        assert (memory(destination, fragments.size) == POISON).all()
        fake.release(fragments.stream)
        fragments.check(direction)
        if reservation is not None:
            reservation.release()


@pytest.mark.parametrize("make", BY_KERNEL)
def test_descriptors_of_queued_batches_are_kept_apart(fake: Fake, driver: Driver, make: MakeEngine) -> None:
    """The kernel reads them when it runs, by when the next batch has been launched."""
    engine = make(driver)
    with (
        scattered(driver, _sizes("small"), seed=1) as one,
        scattered(driver, _sizes("small"), seed=2) as other,
    ):
        engine.prepare(one.stream, "load")
        one.fill("load")
        other.fill("load")
        fake.hold(one.stream)
        reservations = [
            engine.launch(fragments.batch("load"), one.stream, direction="load", source_final=False)
            for fragments in (one, other)
        ]
        fake.release(one.stream)
        driver.synchronize_stream(one.stream)
        one.check("load")
        other.check("load")
        for reservation in reservations:
            assert reservation is not None
            reservation.release()


@both_ways
def test_staging_copies_each_host_run_once(fake: Fake, driver: Driver, direction: Direction) -> None:
    engine = _staged_engine(driver)
    with scattered(driver, [4 * KIB] * 16, run=4) as fragments:
        engine.prepare(fragments.stream, direction)
        fragments.fill(direction)
        before = len(fake.executed())
        engine.launch(fragments.batch(direction), fragments.stream, direction=direction, source_final=False)
        driver.synchronize_stream(fragments.stream)
        operations = [(done.copies, done.nbytes) for done in fake.executed()[before:]]
        runs, spread = (4, 64 * KIB), (16, 64 * KIB)
        assert operations == ([runs, spread] if direction == "load" else [spread, runs])
        fragments.check(direction)


def _fetched_while_held(fake: Fake, driver: Driver, *, source_final: bool) -> int:
    """How many runs of a load were fetched while something in its stream had not ended; they all are in the end."""
    engine = _staged_engine(driver)
    with scattered(driver, [4 * KIB] * 64, run=64) as fragments:  # four times the buffer
        engine.prepare(fragments.stream, "load")
        fragments.fill("load")
        fake.hold(fragments.stream)
        before = len(fake.executed())
        reservation = engine.launch(
            fragments.batch("load"), fragments.stream, direction="load", source_final=source_final
        )
        fake.settle()
        fetched = len(fake.executed()) - before
        if not fetched:
            fragments.host[:] = fragments.host[::-1].copy()  # as what the stream waits for might
        fake.release(fragments.stream)
        fragments.check("load")
        assert reservation is not None
        reservation.release()
    engine.close()
    return fetched


def test_a_load_is_fetched_ahead_of_its_stream_as_far_as_there_are_buffers(fake: Fake, driver: Driver) -> None:
    assert _fetched_while_held(fake, driver, source_final=True) == SLOTS


def test_what_may_still_be_written_is_fetched_after_that(fake: Fake, driver: Driver) -> None:
    assert _fetched_while_held(fake, driver, source_final=False) == 0


def test_where_fetching_fails_the_stream_still_ends_after_what_was_fetched(fake: Fake, driver: Driver) -> None:
    engine = _staged_engine(driver)
    with scattered(driver, [4 * KIB] * 32, run=1) as fragments:
        engine.prepare(fragments.stream, "load")
        fragments.fill("load")
        fake.hold()
        fake.fail_next("cuMemcpyBatchAsync", 1, after=1)
        with pytest.raises(DeviceError):
            engine.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=True)
        event = driver.create_event()
        driver.record_event(event, fragments.stream)
        fake.release(fragments.stream)
        fake.settle()
        assert not driver.query_event(event)
        fake.release()
        driver.synchronize_event(event)
        driver.destroy_event(event)
    engine.close()


@both_ways
@pytest.mark.parametrize("call", ["cuStreamCreateWithPriority", "cuEventCreate", "cuMemAlloc_v2"])
def test_a_lane_that_cannot_be_made_leaves_nothing_behind(
    fake: Fake, driver: Driver, call: str, direction: Direction
) -> None:
    engine = _staged_engine(driver)
    with scattered(driver, [4 * KIB] * 4) as fragments:
        engine._kernel.warm_up()
        kinds = ("streams", "events", "device_bytes")
        before = [fake.count(kind) for kind in kinds]
        fake.fail_next(call, 2, after=0 if call == "cuStreamCreateWithPriority" else 1)
        with pytest.raises(DeviceError, match=call):
            engine.prepare(fragments.stream, direction)
        assert [fake.count(kind) for kind in kinds] == before
        fragments.round_trip(engine, direction)
        engine.close()
        assert [fake.count(kind) for kind in kinds] == before


@both_ways
def test_no_copy_of_a_run_crosses_a_seam(fake: Fake, driver: Driver, direction: Direction) -> None:
    with scattered(driver, [4 * KIB] * 8, run=8) as fragments:
        host = fragments.batch("load").src
        engine = _staged_engine(driver, seams=[int(host[3])])
        engine.prepare(fragments.stream, direction)
        before = len(fake.executed())
        fragments.fill(direction)
        engine.launch(fragments.batch(direction), fragments.stream, direction=direction, source_final=False)
        driver.synchronize_stream(fragments.stream)
        copies = [done.copies for done in fake.executed()[before:] if done.nbytes == 32 * KIB]
        assert sorted(copies)[-2:] == [2, 8]
        fragments.check(direction)


def test_each_stream_has_two_staging_buffers_for_good(fake: Fake, driver: Driver) -> None:
    engine = _staged_engine(driver)
    with scattered(driver, _sizes("small")) as one, scattered(driver, _sizes("uneven")) as other:
        before = fake.count("device_bytes")
        for _ in range(50):
            one.round_trip(engine, "load")
            other.round_trip(engine, "store")
        assert fake.count("device_bytes") - before == engine.nbytes == 2 * SLOTS * STAGING_BYTES
    engine.close()
    engine.close()
    assert fake.count("device_bytes") == 0


@pytest.mark.parametrize("make", BY_KERNEL)
def test_what_was_prepared_allocates_nothing_while_copying(fake: Fake, driver: Driver, make: MakeEngine) -> None:
    engine = make(driver)
    with scattered(driver, _sizes("small")) as fragments:
        engine.prepare(fragments.stream, "load")
        calls = ("cuMemAlloc_v2", "cuMemHostAlloc", "cuModuleLoadData")
        before = [fake.calls(name) for name in calls]
        for _ in range(10):
            fragments.round_trip(engine, "load")
        assert [fake.calls(name) for name in calls] == before


@pytest.mark.parametrize("make", [*BY_DRIVER, *BY_KERNEL])
@pytest.mark.parametrize("prepared", [False, True])
def test_launching_beside_a_capture_spoils_nothing(
    fake: Fake, driver: Driver, make: MakeEngine, prepared: bool
) -> None:
    engine, capturing = make(driver), driver.create_stream()
    with scattered(driver, _sizes("small")) as fragments:
        if prepared:
            engine.prepare(fragments.stream, "load")
        fragments.fill("load")
        with fake.capture(capturing) as outcome:
            reservation = engine.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        assert outcome.code == 0
        fragments.check("load")
        if reservation is not None:
            reservation.release()


@both_ways
def test_the_source_of_a_store_is_read_in_the_order_of_the_stream(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(driver, "copy_batch", lambda *_, source_final: asked.append(source_final))
    with scattered(driver, [8]) as fragments:
        batch = fragments.batch(direction)
        BatchedEngine(driver).launch(batch, fragments.stream, direction=direction, source_final=True)
    assert asked == [direction == "load"]


def test_without_room_for_all_descriptors_nothing_is_queued(fake: Fake, driver: Driver) -> None:
    pool = DescriptorPool(driver, max_bytes=200 << 10)
    engine = KernelEngine(_kernel(driver), pool)
    with scattered(driver, [8] * 9000) as fragments:
        engine.prepare(fragments.stream, "load")
        before = len(fake.executed())
        with pytest.raises(CapacityError):
            engine.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        driver.synchronize_stream(fragments.stream)
        assert len(fake.executed()) == before
    assert pool.in_use == 0


@pytest.mark.parametrize("make", BY_KERNEL)
def test_a_refused_launch_does_not_free_what_queued_ones_read(fake: Fake, driver: Driver, make: MakeEngine) -> None:
    engine = make(driver)
    with scattered(driver, [8] * 9000) as fragments:
        engine.prepare(fragments.stream, "load")
        fragments.fill("load")
        fake.hold(fragments.stream)
        fake.fail_next("cuLaunchKernel", 1, after=1)
        with pytest.raises(DeviceError):
            engine.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        again = engine.launch(fragments.batch("load"), fragments.stream, direction="load", source_final=False)
        fake.release(fragments.stream)
        fragments.check("load")
        assert again is not None
        again.release()
