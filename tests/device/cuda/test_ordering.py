"""Whatever the device does first: with every hazard made known, memory ends as if all had run one after the other."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.event import CudaEvent
from asyncoffload.device.cuda.stream import CudaStream
from tests.device.cuda.fake import Fake
from tests.device.cuda.rig import N_PAGES, PAGE, Rig, rig_over


@contextmanager
def streams_that_stutter(rig: Rig, seed: int) -> Iterator[None]:
    """Meanwhile streams are held and released, one at a time, and now and then all at once."""
    done, chance = threading.Event(), random.Random(seed)
    handles = [rig.compute, *(stream._queue._handle for stream in rig.device._streams)]

    def stutter() -> None:
        while not done.is_set():
            held = chance.sample(handles, chance.randint(1, len(handles)))
            for handle in held:
                rig.fake.hold(handle)
            for _ in range(chance.randint(0, 3)):
                rig.fake.step(chance.choice(held), 1)
            for handle in held:
                rig.fake.release(handle)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Model:
    """Submits at random, makes every hazard known as a handler does, and does the same to two arrays by itself."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)
        self._touched: dict[CudaStream, list[int]] = {stream: [0] * N_PAGES for stream in rig.device._streams}
        self._last_on_page: list[list[CudaEvent]] = [[] for _ in range(N_PAGES)]
        self.on_device = np.zeros(N_PAGES, dtype=np.uint8)
        self.on_host = np.zeros(N_PAGES, dtype=np.uint8)

    def compute(self) -> None:
        page, value = self._random.randrange(N_PAGES), self._random.randrange(256)
        for event in self._last_on_page[page]:
            event.wait(self._rig.compute)
        self._last_on_page[page].clear()
        self._rig.compute_fills(page, value)
        self.on_device[page] = value

    def copy(self) -> None:
        stream = self._random.choice(self._rig.device._streams)
        pages = self._random.sample(range(N_PAGES), self._random.randint(1, 12))
        for other, touched in self._touched.items():
            stream.wait_for(other, max(touched[page] for page in pages))
        copy, event = self._rig.submit(stream, *pages)
        for page in pages:
            self._touched[stream][page] = copy.position
            self._last_on_page[page].append(event)
        if stream.direction == "store":
            self.on_host[pages] = self.on_device[pages]
        else:
            self.on_device[pages] = self.on_host[pages]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_submission_holds_where_it_matters(fake: Fake, driver: Driver, seed: int, pinned: bool) -> None:
    with rig_over(fake, driver, pinned=pinned) as rig:
        for name in ("urgent", "bulk"):
            rig.device.stream(f"{name} stores", "store")
            rig.device.stream(f"{name} loads", "load")
        model, chance = Model(rig, seed), random.Random(seed)
        with streams_that_stutter(rig, seed):
            for _ in range(200):
                if chance.random() < 0.4:
                    model.compute()
                else:
                    model.copy()
            for stream in rig.device._streams:
                event = rig.device.event()
                event.record(stream)
                event.synchronize()
            driver.synchronize_stream(rig.compute)
        assert (rig.on_host == model.on_host[:, np.newaxis]).all()
        assert (rig.on_device == model.on_device[:, np.newaxis]).all()
        assert sum(launch.nbytes for launch in rig.launcher.launches) > 500 * PAGE
