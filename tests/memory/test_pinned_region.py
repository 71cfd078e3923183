"""Pinned regions: what is asked of a pinner, when memory is let go, and what a forked child finds."""

from __future__ import annotations

import gc
import logging
import mmap
import subprocess
import sys
import threading
import uuid
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest

from asyncoffload.errors import ClosedError, DeviceError, OffloadError
from asyncoffload.memory.pinning import address_of
from asyncoffload.memory.region import HostRegion, Pinned
from asyncoffload.memory.shared import SharedRegion
from asyncoffload.types import Int64s

PAGE = mmap.PAGESIZE


@dataclass(eq=False)
class FakePin:
    error: OffloadError | None = None
    seams: Int64s = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    stuck: bool = False
    releases: int = 0

    def release(self) -> None:
        self.releases += 1
        if self.stuck:
            raise DeviceError("the driver will not", code=1)


class FakePinner:
    """Remembers what it was asked for, and answers with what it was given."""

    def __init__(self, pin: FakePin | None = None) -> None:
        self.pins = FakePin() if pin is None else pin
        self.asked: list[tuple[int, int, int]] = []

    def pin(self, address: int, nbytes: int, slot_bytes: int) -> Pinned:
        self.asked.append((address, nbytes, slot_bytes))
        return self.pins


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_region_without_a_pinner_is_pageable() -> None:
    region = HostRegion(2, PAGE)
    assert not region.pinned
    assert region.pin_report is None
    assert region.seams.size == 0
    assert region.seams.dtype == np.int64


def test_all_of_the_memory_is_pinned_and_released_with_the_region() -> None:
    pinner = FakePinner(FakePin(seams=np.array([4096], dtype=np.int64)))
    region = HostRegion(3, 100, pinner=pinner, touch_threads=2)
    assert pinner.asked == [(region.tensor.data_ptr(), 300, 100)]
    assert region.pinned
    assert region.seams.tolist() == [4096]
    assert "pinned" in repr(region)
    report = region.pin_report
    assert report is not None
    assert (report.nbytes, report.touch_threads, report.error) == (300, 2, None)
    assert report.bytes_per_second == pytest.approx(300 / (report.touch_seconds + report.pin_seconds))
    region.close()
    region.close()
    assert pinner.pins.releases == 1
    assert not region.pinned


def test_a_region_is_pinned_once() -> None:
    region, first, second = HostRegion(2, PAGE), FakePinner(), FakePinner()
    region.pin(first)
    region.pin(second)
    assert (len(first.asked), len(second.asked)) == (1, 0)
    region.close()
    with pytest.raises(ClosedError):
        region.pin(second)


def test_pinning_keeps_what_is_in_the_memory() -> None:
    region = HostRegion(4, PAGE)
    region.slot(2)[:3] = b"abc"
    region.pin(FakePinner(), touch_threads=2)
    assert bytes(region.slot(2)[:4]) == b"abc\0"
    region.close()


def test_where_pinning_fails_the_region_is_pageable_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    pinner = FakePinner(FakePin(error=DeviceError("cuMemHostRegister_v2 failed with 2, out of memory", code=2)))
    region = HostRegion(2, PAGE, pinner=pinner)
    region.pin(pinner)
    (warning,) = messages(caplog)
    for part in (f"{2 * PAGE} bytes", "pageable", "failed with 2", "fewer slots", "lock that much memory"):
        assert part in warning
    assert not region.pinned
    assert region.pin_report is not None
    assert region.pin_report.error is pinner.pins.error
    memory = weakref.ref(region._open_memory())
    region.slot(1)[0] = 7
    region.close()
    gc.collect()
    assert memory() is None
    assert (len(messages(caplog)), pinner.pins.releases) == (1, 1)


def test_what_a_failed_attempt_left_pinned_stays_mapped_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    pin = FakePin(error=DeviceError("no"), stuck=True, seams=np.array([PAGE], dtype=np.int64))
    region = HostRegion(2, PAGE, pinner=FakePinner(pin))
    assert not region.pinned
    assert region.seams.tolist() == [PAGE]
    memory = weakref.ref(region._open_memory())
    region.close()
    gc.collect()
    assert memory() is not None
    assert pin.releases == 2
    assert ["pageable" in messages(caplog)[0], "stay pinned" in messages(caplog)[1]] == [True, True]


def test_memory_that_cannot_be_unpinned_stays_mapped(caplog: pytest.LogCaptureFixture) -> None:
    region = HostRegion(2, PAGE, pinner=FakePinner(FakePin(stuck=True)))
    memory = weakref.ref(region._open_memory())
    region.close()
    del region
    gc.collect()
    assert memory() is not None
    assert messages(caplog) == [
        f"{2 * PAGE} bytes of host memory stay mapped, for they stay pinned: the driver will not"
    ]


def test_closing_under_a_holder_leaves_the_memory_mapped_and_pinned(caplog: pytest.LogCaptureFixture) -> None:
    pinner = FakePinner()
    region = HostRegion(4, PAGE, pinner=pinner)
    memory = weakref.ref(region._open_memory())
    with region.hold([1, 2]):
        region.close()
    del region
    gc.collect()
    assert memory() is not None
    assert pinner.pins.releases == 0
    assert messages(caplog) == [f"2 slots are still in use: the region's {4 * PAGE} bytes stay mapped"]


def test_a_pinned_region_that_is_forgotten_stays_mapped_until_it_is_closed() -> None:
    region = HostRegion(2, PAGE, pinner=FakePinner())
    memory = weakref.ref(region._open_memory())
    del region
    gc.collect()
    assert memory() is not None


def test_a_closed_region_gives_its_memory_back() -> None:
    region = HostRegion(2, PAGE, pinner=FakePinner())
    memory = weakref.ref(region._open_memory())
    region.close()
    gc.collect()
    assert memory() is None


class GatedPinner(FakePinner):
    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def pin(self, address: int, nbytes: int, slot_bytes: int) -> Pinned:
        self.reached.set()
        assert self.go_on.wait(30)
        return super().pin(address, nbytes, slot_bytes)


def test_a_region_that_is_closed_while_it_is_being_pinned_is_unpinned() -> None:
    region, pinner = HostRegion(2, PAGE), GatedPinner()
    memory = weakref.ref(region._open_memory())
    pinning = threading.Thread(target=region.pin, args=(pinner,))
    pinning.start()
    assert pinner.reached.wait(30)
    closing = threading.Thread(target=region.close)
    closing.start()
    pinner.go_on.set()
    closing.join()
    pinning.join()
    gc.collect()
    assert pinner.pins.releases == 1
    assert memory() is None


def test_given_memory_is_pinned_where_the_slots_are() -> None:
    memory, pinner = mmap.mmap(-1, 4 * PAGE), FakePinner()
    memory[5] = 9
    region = HostRegion(5, 100, memory, pinner=pinner)
    assert pinner.asked == [(address_of(memory), 500, 100)]
    assert memory[5] == 9
    region.close()


def test_members_of_a_shared_region_pin_it_once_a_process() -> None:
    name, members, late, later = uuid.uuid4().hex, ("scheduler", "rank 0", "rank 1"), FakePinner(), FakePinner()
    scheduler = SharedRegion(name, "scheduler", members, 4, 100)
    assert not scheduler.region.pinned
    worker = SharedRegion(name, "rank 0", members, 4, 100, pinner=late)
    other = SharedRegion(name, "rank 1", members, 4, 100, pinner=later)
    assert scheduler.region.pinned
    assert (len(late.asked), len(later.asked)) == (1, 0)
    for member in (scheduler, worker):
        member.close()
    assert late.pins.releases == 0
    other.close()
    assert late.pins.releases == 1


class BrokenPinner:
    def pin(self, address: int, nbytes: int, slot_bytes: int) -> Pinned:
        raise RuntimeError(f"a bug with {nbytes} bytes at {address:#x}, {slot_bytes=}")


def test_a_member_whose_pinner_breaks_has_not_joined() -> None:
    name = uuid.uuid4().hex
    with pytest.raises(RuntimeError, match="a bug"):
        SharedRegion(name, "rank 0", ("rank 0",), 4, 100, pinner=BrokenPinner())
    SharedRegion(name, "rank 0", ("rank 0",), 4, 100).close()


FORK = """
import mmap, os, sys, threading
import numpy as np
from asyncoffload.errors import ClosedError
from asyncoffload.memory.region import HostRegion

class Pin:
    error, seams = None, np.empty(0, dtype=np.int64)
    def release(self):
        os._exit(3)  # in the child, where nothing is pinned

class Pinner:
    def pin(self, address, nbytes, slot_bytes):
        return Pin()

fd = os.memfd_create("test")
os.ftruncate(fd, 8192)
private, shared = HostRegion(2, 4096, pinner=Pinner()), HostRegion(2, 4096, mmap.mmap(fd, 8192), pinner=Pinner())
pageable = HostRegion(2, 4096)
view = private.view
for region in (private, shared, pageable):
    region.slot(1)[0] = 7
child = os.fork()
if not child:
    assert (private.pinned, shared.pinned) == (False, False)
    assert (view[1, 0], shared.view[1, 0], pageable.view[1, 0]) == (0, 7, 7)
    shared.slot(0)[0] = 5
    try:
        private.slot(1)
    except ClosedError:
        pass
    else:
        os._exit(4)
    private.close()
    shared.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert private.pinned and shared.pinned
assert (private.view[1, 0], private.view[0, 0], shared.view[0, 0]) == (7, 0, 5)
os._exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_has_neither_private_pages_nor_pins() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
