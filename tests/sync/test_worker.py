"""Transfers at the sync facade: the caller's thread launches, collects and waits; only shutdown needs a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import InvalidArgument, TierUnavailable
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync import closing
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.types import (
    CPULoadStoreSpec,
    GPULoadStoreSpec,
    KVGroup,
    KVLayout,
    LoadStoreSpec,
    TransferResult,
    TransferSpec,
)
from asyncoffload.workers.device_host import DeviceHostHandler
from tests.sync.held_copy import TIMEOUT, HeldCopy

PAGE = 64
N_BLOCKS = 32
LAYOUT = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))


class TapeSpec(LoadStoreSpec):
    @staticmethod
    def medium() -> str:
        return "TAPE"


class Rig:
    """A worker whose one handler copies on one thread, in order of submission."""

    def __init__(self) -> None:
        self.hold = HeldCopy()
        self.cache = torch.arange(N_BLOCKS, dtype=torch.uint8)[:, None].repeat(1, PAGE)
        self.region = HostRegion(N_BLOCKS, PAGE)
        self.worker = SyncOffloadingWorker()
        self.handler = DeviceHostHandler([[self.cache]], self.region, LAYOUT, device=CPUDevice(1, batch_copy=self.hold))
        self.worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, self.handler)
        self.worker.register_handler(CPULoadStoreSpec, GPULoadStoreSpec, self.handler)

    def store(self, block: int) -> TransferSpec:
        return GPULoadStoreSpec([block]), CPULoadStoreSpec([block])

    def load(self, block: int) -> TransferSpec:
        return CPULoadStoreSpec([block]), GPULoadStoreSpec([block])


@contextmanager
def rigged() -> Iterator[Rig]:
    rig = Rig()
    try:
        yield rig
    finally:
        rig.hold.opened.set()
        rig.worker.shutdown(TIMEOUT)
        rig.region.close()


def test_a_round_trip_brings_every_byte_back() -> None:
    with rigged() as rig:
        before = rig.cache.clone()
        assert all(rig.worker.transfer_async(block, rig.store(block)) for block in range(N_BLOCKS))
        rig.worker.wait(range(N_BLOCKS))
        rig.cache.zero_()
        assert all(rig.worker.transfer_async(100 + block, rig.load(block)) for block in range(N_BLOCKS))
        rig.worker.wait(range(100, 100 + N_BLOCKS))
        assert torch.equal(rig.cache, before)
        results = rig.worker.get_finished()
        assert [result.job_id for result in results] == [*range(N_BLOCKS), *range(100, 100 + N_BLOCKS)]
        assert all(result.success and result.transfer_size == PAGE for result in results)


def test_launching_returns_at_once_while_the_device_is_busy() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        for block in range(8):
            assert rig.worker.transfer_async(block, rig.store(block))
        rig.hold.reached.acquire()
        assert rig.worker.get_finished() == []
        rig.hold.opened.set()
        rig.worker.wait(range(8))


def test_what_was_asked_for_stays_when_the_spec_is_changed_later() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(1, rig.store(1))
        rig.hold.reached.acquire()
        device, host = GPULoadStoreSpec([2]), CPULoadStoreSpec([2])
        rig.worker.transfer_async(2, (device, host))
        device.block_ids[:] = host.block_ids[:] = 3
        rig.hold.opened.set()
        rig.worker.wait([1, 2])
        assert rig.region.tensor[:4, 0].tolist() == [0, 1, 2, 0]


def test_waiting_consumes_nothing_and_each_result_comes_once() -> None:
    with rigged() as rig:
        rig.worker.transfer_async(1, rig.store(1))
        rig.worker.wait([1])
        rig.worker.wait([1])
        assert [result.job_id for result in rig.worker.get_finished()] == [1]
        assert rig.worker.get_finished() == []
        rig.worker.wait([1])


def test_ids_that_nobody_knows_are_ignored() -> None:
    with rigged() as rig:
        rig.worker.wait([7, 8], TIMEOUT)
        rig.worker.wait([])
        assert rig.worker.get_finished() == []


def test_results_come_in_order_of_completion() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(5, rig.store(1))
        rig.hold.reached.acquire()
        rig.worker.transfer_async(3, rig.store(2))
        rig.worker.transfer_async(4, rig.load(2))
        rig.worker.transfer_async(1, rig.store(3))
        rig.hold.opened.set()
        rig.worker.wait([1, 3, 4, 5])
        ids = [result.job_id for result in rig.worker.get_finished()]
        assert ids[0] == 5
        assert ids.index(3) < ids.index(4)
        assert ids.index(3) < ids.index(1)
        assert len(ids) == 4


def test_after_waiting_nothing_touches_the_memory() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(1, rig.store(1))
        rig.hold.reached.acquire()
        seen: list[int] = []

        def wait() -> None:
            rig.worker.wait([1])
            seen.append(rig.hold.touching)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not seen
        rig.hold.opened.set()
        waiting.join()
        assert seen == [0]


def test_past_its_timeout_waiting_raises_and_may_be_done_again() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(1, rig.store(1))
        with pytest.raises(TierUnavailable, match=r"some of jobs 1 still run after 0\.01 seconds"):
            rig.worker.wait([1], 0.01)
        rig.hold.opened.set()
        rig.worker.wait([1], TIMEOUT)
        assert [result.job_id for result in rig.worker.get_finished()] == [1]


def test_what_a_handler_raises_in_waiting_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError("no device")

    with rigged() as rig, monkeypatch.context() as patched:
        patched.setattr(rig.handler, "synchronize", fail)
        for timeout in (None, TIMEOUT):
            with pytest.raises(OSError, match="no device"):
                rig.worker.wait([1], timeout)


def test_a_transfer_that_cannot_be_launched_is_logged_and_false(caplog: pytest.LogCaptureFixture) -> None:
    with rigged() as rig:
        assert not rig.worker.transfer_async(1, (GPULoadStoreSpec([999]), CPULoadStoreSpec([0])))
        assert "job 1 could not be launched" in caplog.text
        assert rig.worker.get_finished() == []


def test_a_pair_that_nobody_serves_is_refused() -> None:
    with rigged() as rig:
        with pytest.raises(InvalidArgument, match="no handler serves TAPE to GPU"):
            rig.worker.transfer_async(1, (TapeSpec(), GPULoadStoreSpec([0])))
        with pytest.raises(InvalidArgument, match="already serves"):
            rig.worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, rig.handler)


def test_many_threads_launch_and_collect() -> None:
    with rigged() as rig:
        collected: Counter[int] = Counter()
        lock = threading.Lock()

        def work(thread: int) -> None:
            for number in range(100):
                assert rig.worker.transfer_async(1000 * thread + number, rig.store(thread))
                finished = rig.worker.get_finished()
                with lock:
                    collected.update(result.job_id for result in finished)
            rig.worker.wait(range(1000 * thread, 1000 * thread + 100))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        collected.update(result.job_id for result in rig.worker.get_finished())
        assert collected == Counter(1000 * thread + number for thread in range(4) for number in range(100))


def test_shutdown_drops_what_is_queued_and_its_results_stay() -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(1, rig.store(1))
        rig.hold.reached.acquire()
        rig.worker.transfer_async(2, rig.store(2))
        closing = threading.Thread(target=rig.worker.shutdown, args=(TIMEOUT,))
        closing.start()
        results: list[TransferResult] = []
        while not results:
            results = rig.worker.get_finished()
        assert [(result.job_id, result.success) for result in results] == [(2, False)]
        rig.hold.opened.set()
        closing.join()
        assert [(result.job_id, result.success) for result in rig.worker.get_finished()] == [(1, True)]
        assert not rig.worker.transfer_async(3, rig.store(3))
        assert "closed" in repr(rig.worker)


def test_shutdown_ends_and_says_what_it_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    with rigged() as rig:
        rig.hold.opened.clear()
        rig.worker.transfer_async(6, rig.store(1))
        rig.hold.reached.acquire()
        with pytest.raises(TierUnavailable, match=r"left behind after 0\.01 seconds: jobs \[6\] still run"):
            rig.worker.shutdown(0.01)
        assert "left behind" in caplog.text


def test_shutdown_ends_also_when_a_handler_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "GRACE_SECONDS", 0.0)

    async def never(**_: object) -> None:
        await asyncio.Event().wait()

    with rigged() as rig, monkeypatch.context() as patched:
        patched.setattr(rig.handler, "aclose", never)
        with pytest.raises(TierUnavailable, match="it does not answer"):
            rig.worker.shutdown(0.01)


SCRIPT = """
import os, sys, torch
from asyncoffload.errors import WrongLoopError
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.worker import SyncOffloadingWorker
from asyncoffload.types import *
from asyncoffload.workers.device_host import DeviceHostHandler

def make():
    worker = SyncOffloadingWorker()
    cache, region = torch.zeros(8, 64, dtype=torch.uint8), HostRegion(8, 64)
    handler = DeviceHostHandler([[cache]], region, KVLayout("m", "uint8", 16, (KVGroup((64,)),)))
    worker.register_handler(GPULoadStoreSpec, CPULoadStoreSpec, handler)
    return worker

def use(worker):
    assert worker.transfer_async(1, (GPULoadStoreSpec([1]), CPULoadStoreSpec([1])))
    worker.wait([1])
    assert [result.job_id for result in worker.get_finished()] == [1]

worker = make()
use(worker)
pid = os.fork()
if not pid:
    for call in (lambda: use(worker), lambda: worker.wait([1]), worker.get_finished, worker.shutdown):
        try:
            call()
        except WrongLoopError as error:
            assert "make a new one after the fork" in str(error)
        else:
            os._exit(2)
    mine = make()
    use(mine)
    mine.shutdown()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
use(worker)
worker.transfer_async(2, (GPULoadStoreSpec([1]), CPULoadStoreSpec([1])))
print("never shut down")
"""


def test_forks_and_exits_are_survived() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "never shut down\n", "")
