"""The whole stack without an event loop: every byte comes back, at once, exactly once, and it always ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import (
    ClosedError,
    ConfigError,
    InternalError,
    InvalidArgument,
    TierUnavailable,
    TransferError,
)
from asyncoffload.keys import OffloadKey
from asyncoffload.sync import offloader as sync_offloader
from asyncoffload.sync.offloader import OffloadResult, SyncOffloader
from asyncoffload.types import RequestContext, Status
from asyncoffload.workers.device_host import DeviceHostHandler
from tests.offloader.rig import Device, keys_of, settings
from tests.sync.held_copy import TIMEOUT, HeldCopy


class Rig:
    def __init__(self, root: Path, slots: int) -> None:
        self.device = Device()
        self.hold = HeldCopy()
        self.offloader = SyncOffloader(
            settings(self.device, slots, tiers=[{"type": "fs", "root_dir": root, "io_threads": 2}]),
            kv_caches=self.device.kv_caches,
            handler=partial(DeviceHostHandler, device=CPUDevice(1, batch_copy=self.hold)),
        )

    def finish(self, job_id: int) -> OffloadResult:
        self.offloader.wait([job_id], TIMEOUT)
        (result,) = self.offloader.get_finished()
        assert result.job_id == job_id
        return result

    def store(self, keys: Sequence[OffloadKey], blocks: Sequence[int], ctx: RequestContext | None = None) -> None:
        self.device.fill(keys, blocks)
        result = self.finish(self.offloader.submit_store(keys, blocks, ctx or RequestContext()))
        assert result.success
        assert result.is_store
        self.device.poison()

    def load(self, keys: Sequence[OffloadKey], blocks: Sequence[int]) -> OffloadResult:
        result = self.finish(self.offloader.submit_load(keys, blocks))
        assert not result.is_store
        return result

    def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext | None = None) -> int:
        """What the tiers say in the end."""
        while (n := self.offloader.lookup(keys, ctx or RequestContext())) is None:
            self.offloader.settle()
        return n


@contextmanager
def rigged(root: Path, *, slots: int = 32) -> Iterator[Rig]:
    rig = Rig(root, slots)
    try:
        yield rig
    finally:
        rig.hold.opened.set()
        rig.offloader.shutdown(TIMEOUT)


def test_every_byte_comes_back_from_host_memory_and_in_the_next_process_from_disk(tmp_path: Path) -> None:
    keys, blocks = keys_of("a", 8), range(8, 16)
    with rigged(tmp_path) as rig:
        rig.store(keys, range(8))
        result = rig.load(keys, blocks)
        assert (result.blocks, result.by_tier, result.stopped_by) == (8, {"CPU": 8}, None)
        assert rig.device.holds(keys, blocks)
        rig.offloader.settle(TIMEOUT)
    with rigged(tmp_path) as rig:
        rig.device.poison()
        assert rig.lookup(keys) == 8
        result = rig.load(keys, blocks)
        assert (result.blocks, result.by_tier) == (8, {"fs": 8})
        assert rig.device.holds(keys, blocks)


def test_a_prefix_is_found_across_host_memory_and_tiers(tmp_path: Path) -> None:
    keys = keys_of("a", 12)
    with rigged(tmp_path, slots=8) as rig:
        for start in (0, 4, 8):  # the primary has room for two thirds
            rig.store(keys[start : start + 4], range(4))
            rig.offloader.settle(TIMEOUT)
        assert rig.offloader._offloader.ready(keys) < 12
        assert rig.lookup([*keys, *keys_of("b", 2)]) == 12
        assert rig.lookup(keys_of("b", 2)) == 0
        assert rig.load(keys, range(12)).blocks == 12
        assert rig.device.holds(keys, range(12))


def test_blocks_are_prefetched_into_host_memory(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.store(keys, range(8))
        rig.offloader.settle(TIMEOUT)
    with rigged(tmp_path) as rig:
        result = rig.finish(rig.offloader.submit_prefetch(keys))
        assert (result.success, result.is_store, result.blocks, result.by_tier) == (True, False, 8, {"fs": 8})
        assert rig.offloader._offloader.ready(keys) == 8
        assert rig.load(keys, range(8)).by_tier == {"CPU": 8}


def test_no_more_is_loaded_than_is_quicker_to_load(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.store(keys, range(8))
        rig.offloader.settle(TIMEOUT)
    with rigged(tmp_path) as rig:
        rig.load(keys[:2], range(2))  # so that the speed of the tier is known
        result = rig.finish(rig.offloader.submit_load(keys, range(8), prefill_rate=1e15))
        assert (result.blocks, result.by_tier, result.stopped_by) == (2, {"CPU": 2}, None)
        assert result.estimate is not None
        assert result.estimate.found == 8
        result = rig.finish(rig.offloader.submit_load(keys, range(8), prefill_rate=0.0))
        assert isinstance(result.error, InvalidArgument)


@pytest.mark.parametrize("verb", ["settle", "flush"])
def test_after_the_end_nothing_is_settled(tmp_path: Path, verb: str) -> None:
    with rigged(tmp_path) as rig:
        rig.offloader.shutdown(TIMEOUT)
        with pytest.raises(ClosedError):
            getattr(rig.offloader, verb)(TIMEOUT)


def test_while_tiers_are_asked_lookup_says_ask_again(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        assert rig.offloader.lookup(keys_of("a", 4)) is None
        assert rig.lookup(keys_of("a", 4)) == 0
        assert rig.offloader.lookup(keys_of("a", 4)) == 0
        assert rig.offloader.lookup([]) == 0


def test_a_request_sees_only_its_tiers_and_its_namespace(tmp_path: Path) -> None:
    keys = keys_of("a", 4)
    with rigged(tmp_path) as rig:
        rig.store(keys, range(4), RequestContext(namespace="mine"))
        assert rig.lookup(keys) == 0
        assert rig.lookup(keys, RequestContext(namespace="mine")) == 4
        rig.offloader.settle(TIMEOUT)
    with rigged(tmp_path) as rig:
        assert rig.lookup(keys, RequestContext(namespace="mine", tiers=frozenset())) == 0
        assert rig.lookup(keys, RequestContext(namespace="mine")) == 4


def test_submitting_returns_at_once_and_results_come_once(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.device.fill(keys, range(8))
        rig.hold.opened.clear()
        first = rig.offloader.submit_store(keys[:4], range(4))
        second = rig.offloader.submit_store(keys[4:], range(4, 8))
        assert rig.hold.reached.acquire(timeout=TIMEOUT)
        assert rig.offloader.get_finished() == []
        assert rig.offloader.has_pending_work()
        with pytest.raises(TierUnavailable, match=f"jobs {first}, {second} still run"):
            rig.offloader.wait([first, second], 0.01)
        rig.hold.opened.set()
        rig.offloader.wait([first, second, 999])
        rig.offloader.wait([first, second])
        assert {result.job_id for result in rig.offloader.get_finished()} == {first, second}
        assert rig.offloader.get_finished() == []
        assert not rig.offloader.has_pending_work()


def test_a_store_says_what_is_new(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.store(keys[:4], range(4))
        result = rig.finish(rig.offloader.submit_store(keys, range(8)))
        assert (result.blocks, result.stopped_by, result.by_tier) == (4, None, {})


def test_a_load_says_where_it_stopped(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.store(keys[:4], range(4))
        result = rig.load(keys, range(8))
        assert (result.success, result.blocks, result.stopped_by) == (True, 4, Status.MISSING)
        assert rig.device.holds(keys[:4], range(4))
        assert rig.device.untouched(range(4, 8))


def test_what_is_wrong_with_arguments_is_told_by_the_result(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        result = rig.load(keys_of("a", 2), [1, 1])
        assert not result.success
        assert isinstance(result.error, InvalidArgument)
        with pytest.raises(InvalidArgument):
            rig.offloader.lookup([b"x"])  # type: ignore[list-item]


def test_a_failed_copy_is_told_by_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise TransferError("the device is gone")

    keys = keys_of("a", 2)
    with rigged(tmp_path) as rig, monkeypatch.context() as patched:
        rig.store(keys, range(2))
        patched.setattr(HeldCopy, "__call__", lambda _self, batch: fail(batch))
        result = rig.load(keys, range(2))
        assert (result.success, result.blocks) == (False, 0)
        assert isinstance(result.error, TransferError)


def test_cancelled_jobs_have_their_result_and_free_their_blocks(tmp_path: Path) -> None:
    keys = keys_of("a", 8)
    with rigged(tmp_path) as rig:
        rig.device.fill(keys, range(8))
        rig.hold.opened.clear()
        running = rig.offloader.submit_store(keys[:4], range(4))
        queued = rig.offloader.submit_store(keys[4:], range(4, 8))
        assert rig.hold.reached.acquire(timeout=TIMEOUT)
        rig.offloader.cancel([running, queued, 999])
        rig.hold.opened.set()
        rig.offloader.wait([running, queued], TIMEOUT)
        results = rig.offloader.get_finished()
        assert {result.job_id for result in results} == {running, queued}
        assert all(isinstance(result.error, asyncio.CancelledError) for result in results)
        rig.offloader.cancel([running, queued])
        rig.store(keys, range(8))


def test_numbers_are_there_for_who_asks(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.store(keys_of("a", 4), range(4))
        rig.offloader.settle()
        assert rig.offloader.stats().tiers["fs"]["blocks"] == 4
        assert rig.offloader.layout.block_bytes == rig.device.block_bytes
        assert "0 jobs running" in repr(rig.offloader)


def test_shutdown_drops_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    keys = keys_of("a", 2)
    with rigged(tmp_path) as rig:
        rig.hold.opened.clear()
        job = rig.offloader.submit_store(keys, range(2))
        assert rig.hold.reached.acquire(timeout=TIMEOUT)
        with pytest.raises(TierUnavailable, match=rf"left behind after 0\.01 seconds, with jobs {job}"):
            rig.offloader.shutdown(0.01)
        calls: list[Callable[[], object]] = [
            lambda: rig.offloader.submit_load(keys, range(2)),
            lambda: rig.offloader.submit_store(keys, range(2)),
            lambda: rig.offloader.lookup(keys),
        ]
        for call in calls:
            with pytest.raises(ClosedError, match="make a new one"):
                call()
        rig.hold.opened.set()
        rig.offloader.shutdown(TIMEOUT)
        assert [result.success for result in rig.offloader.get_finished()] == [False]


def test_what_is_wrong_with_the_settings_is_said_by_the_constructor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    device = Device()
    with pytest.raises(ConfigError):
        SyncOffloader({"host_byte": 1}, kv_caches=device.kv_caches)
    tiers = [{"type": "fs", "root_dir": tmp_path / "file"}]
    with pytest.raises(ConfigError):
        SyncOffloader(settings(device, 8, tiers=tiers), kv_caches=device.kv_caches)


def test_a_tier_that_does_not_start_is_said_by_the_constructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(sync_offloader, "START_SECONDS", 0.01)
    monkeypatch.setattr("asyncoffload.tiers.fs.manager.FileSystemTierManager.start", never)
    device = Device()
    with pytest.raises(TierUnavailable, match=r"did not start within 0\.01 seconds"):
        SyncOffloader(settings(device, 8, tiers=[{"type": "fs", "root_dir": tmp_path}]), kv_caches=device.kv_caches)


@pytest.mark.usefixtures("caplog")
def test_when_the_loop_dies_nobody_hangs() -> None:

    loop, device = LoopThread(), Device()
    offloader = SyncOffloader(settings(device, 8), kv_caches=device.kv_caches, loop=loop)

    def die() -> None:
        raise SystemExit

    loop.post(die)
    loop._thread.join()
    calls: list[Callable[[], object]] = [
        lambda: offloader.lookup([]),
        lambda: offloader.submit_load([], []),
        offloader.settle,
        offloader.shutdown,
    ]
    for call in calls:
        with pytest.raises(InternalError):
            call()
    offloader.wait([1])
    assert offloader.get_finished() == []
