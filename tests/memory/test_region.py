"""Host memory in slots: zero-copy views, holders, and memory that outlives them."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import numpy as np
import pytest
import torch

from asyncoffload.errors import CapacityError, ClosedError, InvalidArgument
from asyncoffload.memory.region import HostRegion, SlotHold


def test_view_tensor_and_slot_are_the_same_page_aligned_memory() -> None:
    region = HostRegion(3, 100)
    assert (region.view.format, region.view.shape, region.view.readonly) == ("B", (3, 100), False)
    assert (region.tensor.dtype, tuple(region.tensor.shape)) == (torch.uint8, (3, 100))
    assert region.tensor.data_ptr() % 4096 == 0
    assert region.nbytes == 300
    region.slot(1)[:3] = b"abc"
    region.view[2, 99] = 7
    assert bytes(region.tensor[1, :3].numpy()) == b"abc"
    assert region.tensor[2, 99] == 7
    assert region.slot(2).nbytes == 100
    region.close()


@pytest.mark.parametrize(("n_slots", "slot_bytes"), [(0, 1), (1, 0), (-1, 4096), (4, -1)])
def test_sizes_are_positive(n_slots: int, slot_bytes: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{n_slots} x {slot_bytes} bytes"):
        HostRegion(n_slots, slot_bytes)


@pytest.mark.parametrize("n_slots", [1 << 40, 1 << 60])
def test_memory_that_cannot_be_had_is_a_capacity_error(n_slots: int) -> None:
    with pytest.raises(CapacityError, match="ask for fewer slots"):
        HostRegion(n_slots, 1 << 20)


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_that_does_not_exist(slot: int) -> None:
    region = HostRegion(4, 16)
    with pytest.raises(InvalidArgument, match=f"slot {slot} "):
        region.hold([0, slot])
    with pytest.raises(InvalidArgument, match=f"slot {slot} "):
        region.slot(slot)


def test_a_slot_is_held_until_its_last_holder_lets_go() -> None:
    region = HostRegion(4, 16)
    first, second = region.hold([0, 1]), region.hold(np.array([1, 1, 2], dtype=np.int32))
    with first:
        with second:
            assert [region.is_held(slot) for slot in range(4)] == [True, True, True, False]
        assert [region.is_held(slot) for slot in range(4)] == [True, True, False, False]
        assert region.take_released() == [2]
    assert sorted(region.take_released()) == [0, 1]
    assert region.take_released() == []


def test_a_hold_may_be_left_on_another_thread() -> None:
    region = HostRegion(2, 16)
    hold = region.hold([1])
    hold.__enter__()
    thread = threading.Thread(target=hold.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert not region.is_held(1)


def test_a_hold_is_entered_once() -> None:
    hold = HostRegion(2, 16).hold([1])
    with hold:
        pass
    with pytest.raises(InvalidArgument, match="entered once"), hold:
        pass


def test_a_slot_that_is_held_again_is_not_reported_as_released() -> None:
    region = HostRegion(2, 16)
    with region.hold([0, 1]):
        pass
    with region.hold([1]):
        assert region.take_released() == [0]
    assert region.take_released() == [1]


def test_who_asked_about_a_held_slot_hears_of_its_release_once() -> None:
    region, heard = HostRegion(4, 16), list[str]()
    region.on_release(lambda: heard.append("release"))
    with region.hold([0, 1]):
        assert region.is_held(0)
        assert not region.is_held(3)
        with region.hold([0]):
            pass
        assert heard == []
    assert heard == ["release"]
    with region.hold([0, 1]):
        pass
    assert heard == ["release"]


def test_holders_are_counted_right_under_threads() -> None:
    region, start = HostRegion(8, 16), threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(300):
            with region.hold(rng.integers(0, 8, 3, dtype=np.int32)):
                pass

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(map(region.is_held, range(8)))
    assert sorted(region.take_released()) == list(range(8))


def test_closing_gives_the_memory_back_and_nothing_can_be_viewed_afterwards() -> None:
    region = HostRegion(4, 4096)
    memory = weakref.ref(region._open_memory())
    view = region.view
    region.close()
    region.close()
    view[0, 0] = 1
    del view
    gc.collect()
    assert memory() is None
    for attribute in ("view", "tensor"):
        with pytest.raises(ClosedError):
            getattr(region, attribute)
    with pytest.raises(ClosedError), region.hold([0]):
        pass
    assert "closed" in repr(region)


def test_closing_under_a_holder_keeps_the_memory_mapped_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    region = HostRegion(4, 4096)
    memory = weakref.ref(region._open_memory())
    hold: SlotHold = region.hold([1, 2])
    with hold, caplog.at_level(logging.WARNING):
        region.close()
        region.close()
        gc.collect()
        assert memory() is not None
    assert [record.getMessage() for record in caplog.records] == [
        "2 slots are still in use: the region's 16384 bytes stay mapped"
    ]
    del region, hold
    gc.collect()
    assert memory() is not None
