"""Loading, trying and launching the compiled kernel; over the fake driver, which takes any machine code for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.compiled_kernel import (
    DEVICE_PROGRAMS,
    HOST_PROGRAMS,
    ROWS,
    Code,
    CompiledKernel,
)
from asyncoffload.device.cuda.engines.descriptors import DescriptorPool
from asyncoffload.errors import DeviceError
from tests.device.cuda.engines.rig import fake_compiler
from tests.device.cuda.fake import Fake

KINDS = ("streams", "device_bytes", "pinned_bytes")


def _counts(fake: Fake) -> list[int]:
    return [fake.count(kind) for kind in KINDS]


def test_both_kernels_are_compiled_for_the_device_loaded_and_tried(fake: Fake, driver: Driver) -> None:
    asked: list[tuple[int, bool]] = []

    def compiler(capability: int, paired: bool) -> Code:
        asked.append((capability, paired))
        return fake_compiler(capability, paired)

    kernel, before = CompiledKernel(driver, 0, compiler=compiler), _counts(fake)
    kernel.warm_up()
    kernel.warm_up()
    capability = 10 * driver.attribute(75, 0) + driver.attribute(76, 0)
    assert asked == [(capability, False), (capability, True)]
    assert fake.calls("cuLaunchKernel") == 4  # there and back
    assert _counts(fake) == before
    assert fake.count("modules") == 2
    kernel.close()
    kernel.close()
    assert fake.count("modules") == 0


def test_threads_that_need_it_at_once_compile_it_once(fake: Fake, driver: Driver) -> None:
    kernel, context = CompiledKernel(driver, 0, compiler=fake_compiler), driver.retain_primary_context(0)
    start = threading.Barrier(4)

    def use() -> None:
        driver.bind(context)
        start.wait()
        kernel.warm_up()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.count("modules") == 2
    kernel.close()


def test_a_kernel_that_does_not_copy_is_found_out(fake: Fake, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "launch_kernel", lambda *_: None)
    kernel, before = CompiledKernel(driver, 0, compiler=fake_compiler), _counts(fake)
    with pytest.raises(DeviceError, match="does not copy"):
        kernel.warm_up()
    assert _counts(fake) == before
    monkeypatch.undo()
    kernel.warm_up()
    assert fake.count("modules") == 2
    kernel.close()


@pytest.mark.parametrize(
    "call", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "cuMemAlloc_v2", "cuMemHostAlloc"]
)
def test_what_the_driver_refuses_leaves_nothing_behind(fake: Fake, driver: Driver, call: str) -> None:
    kernel, before = CompiledKernel(driver, 0, compiler=fake_compiler), _counts(fake)
    fake.fail_next(call, 2)
    with pytest.raises(DeviceError, match=call):
        kernel.warm_up()
    assert _counts(fake) == before
    kernel.close()
    assert fake.count("modules") == 0


@pytest.mark.parametrize("in_device_memory", [False, True])
@pytest.mark.parametrize("n", [1, ROWS + 1, 8000])
def test_few_fragments_start_few_blocks_of_threads(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, n: int, in_device_memory: bool
) -> None:
    kernel, pool = CompiledKernel(driver, 0, compiler=fake_compiler), DescriptorPool(driver)
    kernel.warm_up()
    launched: list[tuple[int, int]] = []

    def launch(_kernel: int, grid: int, threads: int, *_: Any) -> None:
        launched.append((grid, threads))

    monkeypatch.setattr(driver, "launch_kernel", launch)
    kernel.launch(pool.take(n), driver.create_stream(), paired=True, in_device_memory=in_device_memory)
    most = DEVICE_PROGRAMS if in_device_memory else HOST_PROGRAMS
    assert launched == [(min(most, -(-n // ROWS)), 512)]
