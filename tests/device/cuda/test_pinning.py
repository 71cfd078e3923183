"""Registration in pieces, all or nothing, over the fake driver; and on a real one where there is a device."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.coalesce import CopyBatch, coalesce
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.pinning import HALVINGS, CudaPinner, piece_unit
from asyncoffload.errors import DeviceError
from asyncoffload.memory.pinning import address_of
from asyncoffload.memory.region import HostRegion
from tests.device.cuda.fake import Fake, memory

PAGE = mmap.PAGESIZE
REGISTER, UNREGISTER = "cuMemHostRegister_v2", "cuMemHostUnregister"


class LoggedDriver(Driver):
    """Writes down what is registered, and the order in which it is given back."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.registered: list[tuple[int, int]] = []
        self.unregistered: list[int] = []

    def register(self, address: int, nbytes: int) -> None:
        super().register(address, nbytes)
        self.registered.append((address, nbytes))

    def unregister(self, address: int) -> None:
        super().unregister(address)
        self.unregistered.append(address)


@pytest.fixture
def logged(fake: Fake) -> LoggedDriver:
    return LoggedDriver(fake.library)


_memories: list[mmap.mmap] = []


@pytest.fixture(autouse=True)
def _unmap() -> Iterator[None]:
    yield
    _memories.clear()


def at_some_memory(pages: int) -> tuple[int, int]:
    _memories.append(mmap.mmap(-1, pages * PAGE))
    return address_of(_memories[-1]), pages * PAGE


def lengths(driver: LoggedDriver) -> list[int]:
    return [nbytes for _, nbytes in driver.registered]


@pytest.mark.parametrize(
    ("slot_bytes", "unit"),
    [(4096, 4096), (8192, 8192), (6144, 12288), (100, 102400), (4097, 4097 * 4096), (1 << 21, 1 << 21)],
)
def test_a_piece_ends_with_a_slot_and_with_a_page(slot_bytes: int, unit: int) -> None:
    assert piece_unit(slot_bytes, 4096) == unit


def test_a_region_is_registered_in_pieces_and_given_back_from_the_end(fake: Fake, logged: LoggedDriver) -> None:
    pinner = CudaPinner(logged, 0, piece_bytes=4 * PAGE + 100)
    region = HostRegion(11, PAGE, pinner=pinner)
    start = region.tensor.data_ptr()
    assert logged.registered == [(start, 4 * PAGE), (start + 4 * PAGE, 4 * PAGE), (start + 8 * PAGE, 3 * PAGE)]
    assert region.pinned
    assert region.seams.tolist() == [start + 4 * PAGE, start + 8 * PAGE]
    assert fake.count("registered_bytes") == region.nbytes
    region.close()
    assert logged.unregistered == [start + 8 * PAGE, start + 4 * PAGE, start]
    assert (fake.count("registrations"), fake.count("contexts")) == (0, 0)


def test_slots_that_are_no_multiple_of_a_page(fake: Fake, logged: LoggedDriver) -> None:
    slot_bytes = PAGE * 3 // 2
    region = HostRegion(9, slot_bytes, pinner=CudaPinner(logged, 0, piece_bytes=4 * slot_bytes))
    assert lengths(logged) == [4 * slot_bytes, 4 * slot_bytes, slot_bytes]
    assert all((seam - region.tensor.data_ptr()) % slot_bytes == seam % PAGE == 0 for seam in region.seams)
    region.close()
    odd = HostRegion(9, 5000, pinner=CudaPinner(logged, 0, piece_bytes=PAGE))
    assert lengths(logged)[3:] == [45000]  # no slot ends with a page before 512 of them do
    odd.close()
    assert fake.count("registered_bytes") == 0


@given(st.integers(1, 60), st.integers(1, 5 * PAGE), st.integers(1, 40 * PAGE), st.integers(0, 20 * PAGE))
def test_pieces_cover_the_region_and_cut_no_slot(
    n_slots: int, slot_bytes: int, piece_bytes: int, largest_call: int
) -> None:
    fake = Fake()
    fake.reset()
    fake.limit_registration(one_call=largest_call)
    driver = LoggedDriver(fake.library)
    mapped = mmap.mmap(-1, n_slots * slot_bytes)
    address, nbytes = address_of(mapped), n_slots * slot_bytes
    pinned = CudaPinner(driver, 0, piece_bytes=piece_bytes).pin(address, nbytes, slot_bytes)
    if pinned.error is None:
        ends = np.cumsum([address, *lengths(driver)])
        assert [start for start, _ in driver.registered] == ends[:-1].tolist()
        assert ends[-1] == address + nbytes
        assert pinned.seams.tolist() == ends[1:-1].tolist()
        assert all(seam % PAGE == 0 and (seam - address) % slot_bytes == 0 for seam in pinned.seams)
        assert max(lengths(driver)) <= max(piece_bytes, piece_unit(slot_bytes))
        if largest_call:
            assert max(lengths(driver)) <= largest_call
    else:
        assert pinned.seams.size == fake.count("registrations") == 0
        smallest = max(piece_unit(slot_bytes), piece_bytes >> HALVINGS)
        assert largest_call < min(nbytes, 2 * smallest + piece_unit(slot_bytes))
    pinned.release()
    assert fake.count("registrations") == fake.count("contexts") == 0
    fake.reset()


def test_a_refused_piece_is_tried_in_halves_and_what_went_well_is_kept(fake: Fake, logged: LoggedDriver) -> None:
    fake.limit_registration(one_call=3 * PAGE)
    region = HostRegion(10, PAGE, pinner=CudaPinner(logged, 0, piece_bytes=8 * PAGE))
    assert region.pinned
    assert lengths(logged) == [2 * PAGE] * 5
    assert fake.calls(REGISTER) == 7
    region.close()


def test_what_cannot_be_had_in_full_is_given_back_and_the_region_is_pageable(
    fake: Fake, logged: LoggedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    fake.limit_registration(total=5 * PAGE)
    with caplog.at_level(logging.WARNING):
        region = HostRegion(8, PAGE, pinner=CudaPinner(logged, 0, piece_bytes=2 * PAGE))
    assert not region.pinned
    assert region.seams.size == 0
    starts = [address for address, _ in logged.registered]
    assert lengths(logged) == [2 * PAGE, 2 * PAGE, PAGE]
    assert logged.unregistered == starts[::-1]
    assert (fake.count("registrations"), fake.count("contexts")) == (0, 0)
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in (f"{8 * PAGE} bytes", "pageable", "OUT_OF_MEMORY", "slots"))
    region.close()
    assert len(caplog.records) == 1


def test_a_device_that_is_not_there_leaves_the_region_pageable(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    region = HostRegion(2, PAGE, pinner=CudaPinner(Driver(fake.library), 99))
    assert not region.pinned
    assert region.pin_report is not None
    assert isinstance(region.pin_report.error, DeviceError)
    assert len(caplog.records) == 1
    region.close()


def test_a_lost_device_is_not_asked_again(fake: Fake, logged: LoggedDriver) -> None:
    fake.fail_next(REGISTER, 719)
    pinned = CudaPinner(logged, 0, piece_bytes=8 * PAGE).pin(*at_some_memory(8), PAGE)
    assert pinned.error is not None
    assert (pinned.error.code, pinned.error.lost) == (719, True)
    assert fake.calls(REGISTER) == 1


def test_a_failed_unregistration_keeps_the_rest_and_can_be_tried_again(fake: Fake, logged: LoggedDriver) -> None:
    pinned = CudaPinner(logged, 0, piece_bytes=2 * PAGE).pin(*at_some_memory(6), PAGE)
    fake.fail_next(UNREGISTER, 1, after=1)
    with pytest.raises(DeviceError, match=f"{2 * PAGE} bytes of host memory could not be unpinned.*INVALID_VALUE"):
        pinned.release()
    assert (pinned.pieces, pinned.seams.size, fake.count("contexts")) == (1, 2, 1)
    pinned.release()
    pinned.release()
    assert (pinned.pieces, fake.count("registrations"), fake.count("contexts")) == (0, 0, 0)


def test_a_region_that_cannot_be_unpinned_stays_mapped(
    fake: Fake, logged: LoggedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    region = HostRegion(6, PAGE, pinner=CudaPinner(logged, 0, piece_bytes=2 * PAGE))
    address = region.tensor.data_ptr()
    fake.fail_next(UNREGISTER, 1, times=3)
    region.close()
    (record,) = caplog.records
    assert f"{6 * PAGE} bytes of host memory stay mapped" in record.getMessage()
    del region
    assert not memory(address, 6 * PAGE).any()
    assert fake.count("registrations") == 3


def test_a_rollback_that_fails_says_so_and_is_tried_again(fake: Fake, logged: LoggedDriver) -> None:
    fake.limit_registration(total=3 * PAGE)
    fake.fail_next(UNREGISTER, 1)
    pinned = CudaPinner(logged, 0, piece_bytes=2 * PAGE).pin(*at_some_memory(6), PAGE)
    assert "could not be unpinned" in str(pinned.error)
    assert pinned.pieces == 1
    pinned.release()
    assert (pinned.pieces, fake.count("registrations")) == (0, 0)


@pytest.mark.parametrize("symbol", [UNREGISTER, "cuCtxSetCurrent", "cuDevicePrimaryCtxRelease_v2"])
def test_a_driver_that_shuts_down_has_let_go_of_everything(fake: Fake, logged: LoggedDriver, symbol: str) -> None:
    pinned = CudaPinner(logged, 0, piece_bytes=2 * PAGE).pin(*at_some_memory(6), PAGE)
    fake.fail_next(symbol, 4)
    pinned.release()
    assert pinned.pieces == 0


def test_the_calling_thread_keeps_its_context(fake: Fake, logged: LoggedDriver) -> None:
    fake.set_devices(2)
    mine = logged.retain_primary_context(0)
    logged.bind(mine)
    pinned = CudaPinner(logged, 1).pin(*at_some_memory(4), PAGE)
    assert logged.bind(mine) == mine
    pinned.release()
    assert logged.bind(mine) == mine


def test_memory_is_unpinned_on_any_thread(fake: Fake, logged: LoggedDriver) -> None:
    region = HostRegion(4, PAGE, pinner=CudaPinner(logged, 0))
    closing = threading.Thread(target=region.close)
    closing.start()
    closing.join()
    assert fake.count("registrations") == 0


def test_pinning_beside_a_graph_capture_does_not_spoil_it(fake: Fake, driver: Driver) -> None:
    stream = driver.create_stream()
    with fake.capture(stream) as capture:
        HostRegion(4, PAGE, pinner=CudaPinner(driver, 0)).close()
    assert capture.code == 0


def test_copies_that_respect_the_seams_are_taken_and_others_refused(driver: Driver) -> None:
    region = HostRegion(8, PAGE, pinner=CudaPinner(driver, 0, piece_bytes=2 * PAGE))
    host, device = region.tensor.data_ptr(), driver.alloc_device(region.nbytes)
    stream = driver.create_stream()
    region.tensor.copy_(torch.arange(region.nbytes).view(8, PAGE) % 251)
    starts = np.arange(8, dtype=np.int64) * PAGE
    batch = CopyBatch(device + starts, host + starts, np.full(8, PAGE, dtype=np.int64))
    (whole,) = coalesce(batch, piece_bytes=1 << 30, piece_copies=4096)
    with pytest.raises(DeviceError, match="INVALID_VALUE"):
        driver.copy_batch(whole.dst, whole.src, whole.nbytes, stream, source_final=True)
    (parts,) = coalesce(batch, piece_bytes=1 << 30, piece_copies=4096, seams=region.seams)
    assert len(parts) == 4
    driver.copy_batch(parts.dst, parts.src, parts.nbytes, stream, source_final=True)
    back = torch.zeros_like(region.tensor)
    driver.copy_one(back.data_ptr(), device, region.nbytes, stream)
    driver.synchronize_stream(stream)
    assert torch.equal(back, region.tensor)
    region.close()


def test_shared_memory_is_pinned_where_the_slots_are(fake: Fake, logged: LoggedDriver) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 5 * PAGE)
    mapped = mmap.mmap(fd, 5 * PAGE)
    os.close(fd)
    mapped[PAGE] = 7
    region = HostRegion(4, PAGE, mapped, pinner=CudaPinner(logged, 0, piece_bytes=2 * PAGE))
    assert lengths(logged) == [2 * PAGE, 2 * PAGE]
    assert region.slot(1)[0] == 7
    region.close()
    assert fake.count("registrations") == 0


def test_what_it_says_of_itself(logged: LoggedDriver) -> None:
    pinner = CudaPinner(logged, 0)
    assert "device 0" in repr(pinner)
    pinned = pinner.pin(*at_some_memory(2), PAGE)
    assert repr(pinned) == f"CudaPinned({2 * PAGE} bytes, 1 registrations)"
    pinned.release()


# On a real device


def on_gpu(test: Callable[[], None]) -> Callable[[], None]:
    needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(needs_cuda(test))


def pinned_region(n_slots: int, slot_bytes: int, piece_bytes: int) -> HostRegion:
    region = HostRegion(n_slots, slot_bytes, pinner=CudaPinner(Driver(), 0, piece_bytes=piece_bytes))
    assert region.pinned, region.pin_report
    return region


@on_gpu
def test_torch_sees_pinned_memory_until_the_region_is_closed() -> None:
    torch.zeros(1, device="cuda")
    region = pinned_region(64, 1 << 20, 16 << 20)
    tensor = region.tensor
    assert tensor.is_pinned()
    assert all(tensor[slot].is_pinned() for slot in range(64))
    region.close()
    assert not tensor.is_pinned()


@on_gpu
def test_bytes_go_to_the_device_and_back_through_every_piece() -> None:
    region = pinned_region(64, 1 << 20, 16 << 20)
    pattern = torch.randint(256, region.tensor.shape, dtype=torch.uint8)
    region.tensor.copy_(pattern)
    on_device = torch.empty_like(pattern, device="cuda")
    for slot in range(64):
        on_device[slot].copy_(region.tensor[slot], non_blocking=True)
    torch.cuda.synchronize()
    region.tensor.zero_()
    for slot in range(64):
        region.tensor[slot].copy_(on_device[slot], non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(region.tensor, pattern)
    region.close()


@on_gpu
def test_a_copy_across_a_seam_is_refused_by_the_real_driver_too() -> None:
    """Were it not, pieces would need no seams."""
    driver = Driver()
    region = pinned_region(4, 1 << 20, 2 << 20)
    context = driver.retain_primary_context(0)
    previous = driver.bind(context)
    stream, device = driver.create_stream(), driver.alloc_device(region.nbytes)
    dst, src, nbytes = (np.array([n], dtype=np.int64) for n in (device, region.tensor.data_ptr(), region.nbytes))
    with pytest.raises(DeviceError, match="INVALID_VALUE"):
        driver.copy_batch(dst, src, nbytes, stream, source_final=True)
    driver.synchronize_stream(stream)
    driver.destroy_stream(stream)
    driver.free_device(device)
    driver.bind(previous)
    driver.release_primary_context(0)
    region.close()
