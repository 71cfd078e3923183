"""Pages are made present, and what is in them stays."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asyncoffload.errors import CapacityError
from asyncoffload.memory.first_touch import first_touch, populate, sensible_threads, wiped_on_fork
from asyncoffload.memory.pinning import address_of
from asyncoffload.memory.region import HostRegion

MIB = 1 << 20


def resident_bytes(memory: mmap.mmap) -> int:
    """Bytes of pages that are present in the mapping that begins where this memory begins."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    start = f"{address_of(memory):x}-"
    for line in lines:
        if line.startswith(start):
            return next(int(field.split()[1]) * 1024 for field in lines if field.startswith("Rss:"))
    raise AssertionError("the memory is not mapped, or is part of a larger mapping")


def is_present(region: HostRegion, slot: int) -> bool:
    """Whether a slot's first page is, by the kernel's account."""
    flags = (ctypes.c_ubyte * 1)()
    libc = ctypes.CDLL(None, use_errno=True)
    address = region.tensor[slot].data_ptr()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(1), flags) == 0
    return bool(flags[0] & 1)


def anonymous(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    wiped_on_fork(address_of(memory), nbytes)  # a flag of its own: the kernel does not join it to its neighbours
    return memory


def shared(nbytes: int) -> mmap.mmap:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, nbytes)
        return mmap.mmap(fd, nbytes)
    finally:
        os.close(fd)


def cannot_populate(address: int, nbytes: int) -> int:  # noqa: ARG001 (the call's surface)
    return errno.EINVAL


either_kernel = pytest.mark.parametrize("by", [populate, cannot_populate], ids=["new kernel", "old kernel"])
Populate = Callable[[int, int], int]


@either_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_every_page_of_fresh_memory_is_present(threads: int, by: Populate) -> None:
    memory = anonymous(9 * MIB)
    assert resident_bytes(memory) == 0
    first_touch(address_of(memory), 9 * MIB, threads, zeros=True, populate=by)
    assert resident_bytes(memory) == 9 * MIB


@either_kernel
def test_every_page_of_shared_memory_is_present_and_keeps_its_bytes(by: Populate) -> None:
    memory = shared(9 * MIB)
    memory[5 * MIB] = 7
    first_touch(address_of(memory), 9 * MIB, 2, populate=by)
    assert resident_bytes(memory) == 9 * MIB
    assert memory[5 * MIB] == 7


@either_kernel
def test_private_memory_in_use_keeps_its_bytes(by: Populate) -> None:
    memory = anonymous(4 * MIB)
    memory[:] = pattern = np.arange(4 * MIB, dtype=np.uint32).astype(np.uint8).tobytes()
    first_touch(address_of(memory), 4 * MIB, 2, populate=by)
    assert memory[:] == pattern


def test_without_threads_nothing_is_touched() -> None:
    memory = anonymous(4 * MIB)
    first_touch(address_of(memory), 4 * MIB, 0, zeros=True)
    assert resident_bytes(memory) == 0


def test_memory_that_the_machine_has_not_is_a_capacity_error() -> None:
    memory, calls = anonymous(64 * MIB), list[int]()

    def refuse(address: int, nbytes: int) -> int:  # noqa: ARG001
        calls.append(nbytes)
        return errno.ENOMEM

    with pytest.raises(CapacityError, match=r"Cannot allocate memory.*ask for fewer slots"):
        first_touch(address_of(memory), 64 * MIB, 4, zeros=True, populate=refuse)
    assert len(calls) <= 4  # nobody goes on


def test_an_interrupted_call_is_made_again() -> None:
    memory, codes = anonymous(MIB), [errno.EINTR, errno.EAGAIN]

    def interrupted(address: int, nbytes: int) -> int:
        return codes.pop() if codes else populate(address, nbytes)

    first_touch(address_of(memory), MIB, 1, zeros=True, populate=interrupted)
    assert resident_bytes(memory) == MIB


def test_a_sensible_number_of_threads() -> None:
    assert 1 <= sensible_threads() <= len(os.sched_getaffinity(0))


def test_a_region_is_touched_on_demand() -> None:
    touched, lazy = HostRegion(4, MIB, touch_threads=2), HostRegion(4, MIB)
    assert is_present(touched, 2)
    assert not is_present(lazy, 2)
