"""The end of a sync tier: shutdown, a dead loop, a fork, an exit, an interrupt."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from asyncoffload.errors import ClosedError, InternalError, TierUnavailable
from asyncoffload.sync import closing
from asyncoffload.types import Status, TransferJob
from tests.sync.held_tier import TIMEOUT, some_keys
from tests.sync.tier_rig import Rig, rigged


def test_shutdown_drops_what_is_queued_and_its_results_stay() -> None:
    with rigged() as rig:
        rig.tier.jobs.shut()
        rig.store(some_keys(2), 1)
        rig.tier.jobs.wait_reached()
        closing = threading.Thread(target=rig.facade.shutdown, args=(TIMEOUT,))
        closing.start()
        while not rig.tier.closed:
            rig.settled()
        rig.tier.jobs.open()
        closing.join()
        assert not rig.tier.touching
        (result,) = rig.facade.get_finished()
        assert [outcome.status for outcome in result.outcomes] == [Status.CANCELLED] * 2
        assert "closed" in repr(rig.facade)


def test_after_shutdown_no_new_work_is_taken() -> None:
    with rigged() as rig:
        rig.facade.shutdown()
        rig.facade.shutdown()
        for call in (
            lambda: rig.store(some_keys(1), 1),
            lambda: rig.load(some_keys(1), 1),
            lambda: rig.facade.lookup(some_keys(1)[0]),
            lambda: rig.facade.touch(some_keys(1)),
            rig.facade.start,
        ):
            with pytest.raises(ClosedError, match="was shut down: make a new one"):
                call()
        assert rig.facade.get_finished() == []
        rig.facade.drain_jobs()


def test_shutdown_ends_and_says_what_it_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "GRACE_SECONDS", 0.0)
    with rigged() as rig:
        rig.tier.jobs.shut()
        rig.store(some_keys(3), 5)
        rig.tier.jobs.wait_reached()
        with pytest.raises(TierUnavailable, match=r"left behind after 0\.01 seconds, with jobs 5 of 3 blocks"):
            rig.facade.shutdown(0.01)
        assert "left behind" in caplog.text
        rig.tier.jobs.open()
        rig.facade.shutdown(TIMEOUT)
        assert [result.job_id for result in rig.facade.get_finished()] == [5]


def test_shutdown_ends_also_when_the_tier_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "GRACE_SECONDS", 0.0)
    with rigged() as rig:
        rig.tier.closing.shut()
        with pytest.raises(TierUnavailable, match="left behind"):
            rig.facade.shutdown(0.01)


def test_shutdown_passes_on_what_the_tier_says(caplog: pytest.LogCaptureFixture) -> None:
    def fault(call: str) -> None:
        if call == "aclose":
            raise TierUnavailable("the file server does not answer")

    with rigged() as rig:
        rig.tier.fault = fault
        with pytest.raises(TierUnavailable, match="left behind"):
            rig.facade.shutdown(TIMEOUT)
        assert "the file server does not answer" in caplog.text


def test_start_that_takes_too_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with rigged() as rig:
        monkeypatch.setattr(rig.tier, "start", partial(rig.tier.lookups.passing, []))
        rig.tier.lookups.shut()
        with pytest.raises(TierUnavailable, match=r"did not start within 0\.01 seconds"):
            rig.facade.start(0.01)


def _kill(rig: Rig) -> None:
    def die() -> None:
        raise SystemExit

    rig.loop.post(die)
    rig.loop._thread.join()


@pytest.mark.usefixtures("caplog")
def test_when_the_loop_dies_nobody_hangs() -> None:
    with rigged() as rig:
        rig.store(some_keys(1), 1)
        rig.facade.drain_jobs()
        rig.tier.jobs.shut()
        rig.store(some_keys(1), 2)
        rig.tier.jobs.wait_reached()
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                rig.facade.drain_jobs()
            except InternalError as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not rig.loop._waiting:
            rig.settled()
        _kill(rig)
        waiting.join()
        assert errors
        assert [result.job_id for result in rig.facade.get_finished()] == [1]
        for call in (
            rig.facade.get_finished,
            rig.facade.drain_jobs,
            rig.facade.shutdown,
            rig.facade.take_events,
            lambda: rig.facade.lookup(some_keys(1)[0]),
            lambda: rig.load(some_keys(1), 3),
        ):
            with pytest.raises(InternalError, match="the loop's thread has ended"):
                call()


BEGIN = """
import os, sys
from asyncoffload.keys import make_key
from asyncoffload.errors import WrongLoopError
from asyncoffload.sync.tier import SyncSecondaryTier
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVGroup, KVLayout, LookupResult, TransferJob

layout = KVLayout("m", "uint8", 16, (KVGroup((4096,)),))
memory = bytearray(64 * 4096)
view = memoryview(memory).cast("B", (64, 4096))
keys = [make_key(bytes([n])) for n in range(64)]

def facade(make_files=None):
    more = {"make_files": make_files} if make_files else {}
    return SyncSecondaryTier(FileSystemTierManager(layout, view, "fs", sys.argv[1], 2, 2, **more))

def job(n=64):
    return TransferJob(keys[:n], range(n))
"""


def run_script(script: str, root: Path, *, warnings: str = "error") -> str:
    run = subprocess.run(
        [sys.executable, "-W", warnings, "-c", BEGIN + script, str(root)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize("jobs", [0, 1, 50])
def test_a_process_that_never_shuts_down_ends_all_the_same(jobs: int, tmp_path: Path) -> None:
    run_script(f"tier = facade()\nfor _ in range({jobs}): tier.submit_store(job())", tmp_path)


def test_a_process_whose_disk_hangs_ends_all_the_same(tmp_path: Path) -> None:
    script = """
from asyncoffload.aio import loop_thread
import threading
loop_thread.EXIT_SECONDS = 0.1
reached = threading.Event()
class Hanging(BlockFiles):
    def write(self, *args):
        reached.set()
        threading.Event().wait()
tier = facade(lambda block_format, owner, direct: Hanging(block_format, owner, direct=direct))
tier.submit_store(job())
reached.wait()
"""
    run_script(script, tmp_path)


def test_a_forked_child_is_told_and_makes_a_tier_of_its_own(tmp_path: Path) -> None:
    script = """
tier = facade()
tier.submit_store(job())
tier.drain_jobs()
tier._jobs._collecting.acquire()
pid = os.fork()
if not pid:
    for call in (lambda: tier.lookup(keys[0]), lambda: tier.submit_store(job()), tier.get_finished, tier.drain_jobs,
                 tier.take_events, tier.shutdown, lambda: tier.forget_request("r"), lambda: tier.touch(keys)):
        try:
            call()
        except WrongLoopError as error:
            assert "make a new one after the fork" in str(error)
        else:
            os._exit(2)
    mine = facade()
    mine.submit_load(job())
    mine.drain_jobs()
    assert mine.get_finished()[0].success
    mine.shutdown()
    sys.exit(0)
tier._jobs._collecting.release()
assert os.waitpid(pid, 0)[1] == 0
assert tier.get_finished()[0].success
tier.submit_load(job())
tier.drain_jobs()
print(tier.get_finished()[0].success, tier.lookup(keys[0]))
tier.shutdown()
"""
    assert run_script(script, tmp_path, warnings="ignore::DeprecationWarning") == "True LookupResult.HIT\n"


def test_an_interrupt_ends_the_waiting_and_not_the_jobs(tmp_path: Path) -> None:
    script = """
import threading
reached, go_on = threading.Event(), threading.Event()
class Held(BlockFiles):
    def write(self, *args):
        reached.set()
        go_on.wait()
        return super().write(*args)
tier = facade(lambda block_format, owner, direct: Held(block_format, owner, direct=direct))
tier.submit_store(job())
reached.wait()
try:
    print("waiting", flush=True)
    tier.drain_jobs()
except KeyboardInterrupt:
    go_on.set()
    tier.drain_jobs()
    print("interrupted,", tier.get_finished()[0].success)
tier.shutdown()
"""
    run = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BEGIN + script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored here
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "waiting\n"
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=60) == ("interrupted, True\n", "")
    assert run.returncode == 0


def test_interrupts_at_any_moment_leave_nothing_that_is_waited_for_in_vain(tmp_path: Path) -> None:
    script = """
import random, signal
sys.unraisablehook = lambda _: None  # an interrupt may hit the callback of a weak reference, and is lost there
armed = []
def interrupt(*_):
    if armed:
        armed.clear()
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
tier, chance, interrupts = facade(), random.Random(0), 0
tier.start()
for number in range(300):
    try:
        armed.append(True)
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 6e-4))
        for _ in range(3):
            tier.submit_store(job(4))
            tier.lookup(keys[chance.randrange(64)])
        tier.drain_jobs()
        tier.get_finished()
        armed.clear()
    except (KeyboardInterrupt, RuntimeError) as error:
        # One that hits a condition of the standard library while it takes its lock back ends as a RuntimeError there.
        if isinstance(error, RuntimeError) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        interrupts += 1
    tier.drain_jobs(30)
    while tier.has_pending_work() and tier.get_finished():
        pass
assert interrupts > 50, interrupts
for key in keys[:4]:
    assert tier.lookup(key) is LookupResult.HIT
tier.shutdown()
print("all ended")
"""
    assert run_script(script, tmp_path) == "all ended\n"


def test_jobs_of_a_forgotten_facade_run_to_their_end(tmp_path: Path) -> None:
    script = """
import gc
tier = facade()
tier.start()
wrapped, loop = tier._tier, tier._loop
tier.submit_store(job())
del tier
gc.collect()
loop.run(wrapped.drain)
while wrapped.stats()["blocks"] < 64: pass
print("all there")
"""
    assert run_script(script, tmp_path) == "all there\n"


def test_a_job_submitted_while_the_tier_closes_has_its_result() -> None:
    with rigged() as rig:
        rig.tier.closing.shut()
        closing = threading.Thread(target=rig.facade.shutdown, args=(TIMEOUT,))
        job = TransferJob(some_keys(1), [0], job_id=1)
        rig.facade.submit_store(job)
        closing.start()
        rig.tier.closing.wait_reached()
        rig.tier.closing.open()
        closing.join()
        assert [result.job_id for result in rig.facade.get_finished()] == [1]
