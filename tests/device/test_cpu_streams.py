"""Streams keep their order, events mark it, copies can be taken back and stopped."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.device.cpu_streams import Copy, CPUEvent, CPUStream
from asyncoffload.device.events import DeviceEvent, probe
from asyncoffload.errors import ClosedError, InvalidArgument, TransferError


class Script:
    """A batch copy that logs which source byte moves, and stops at the bytes a test wants held or broken."""

    def __init__(self, *, hold: set[int] | None = None, broken: set[int] | None = None) -> None:
        self.memory = np.zeros(512, dtype=np.uint8)
        self.memory[256:] = np.arange(256)
        self.log: list[int] = []
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Event()
        self._hold, self._broken = hold or set(), broken or set()

    def __call__(self, batch: CopyBatch) -> None:
        byte = int(batch.src[0]) - self.memory.ctypes.data - 256
        self.log.append(byte)
        self.arrived.release()
        if byte in self._hold:
            assert self.go_on.wait(30)
        if byte in self._broken:
            raise RuntimeError(f"byte {byte} is broken")
        copy_one_by_one(batch)

    def batch(self, *numbers: int) -> CopyBatch:
        """Copies that write byte ``n`` of the memory with ``n``; no two are neighbours if none of the numbers are."""
        wanted = np.array(numbers, dtype=np.int64)
        here = self.memory.ctypes.data
        return CopyBatch(here + wanted, here + 256 + wanted, np.ones(len(numbers), dtype=np.int64))

    def written(self) -> list[int]:
        return np.flatnonzero(self.memory[:256]).tolist()


def submit(stream: CPUStream, script: Script, *numbers: int) -> tuple[Copy, CPUEvent]:
    copy, event = stream.copy(script.batch(*numbers), keep_alive=script), CPUEvent()
    event.record(stream)
    return copy, event


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script(hold={1, 3}, broken={13})
    yield script
    script.go_on.set()


def test_an_event_has_the_surface_of_a_cuda_event() -> None:
    event: DeviceEvent = CPUEvent()
    assert event.query()
    event.synchronize()
    engine = CPUDevice(1)
    event.record(engine.stream("idle"))
    assert event.query()
    engine.close()


def test_a_stream_runs_in_order_while_another_overtakes_it(script: Script) -> None:
    with closing(CPUDevice(2, batch_copy=script)) as engine:
        slow, fast = engine.stream("slow"), engine.stream("fast")
        first, _ = submit(slow, script, 1)
        second, second_event = submit(slow, script, 5)
        _, fast_event = submit(fast, script, 7)
        fast_event.synchronize()
        assert fast_event.query()
        assert not second_event.query()
        assert not second.started
        script.go_on.set()
        second_event.synchronize()
        assert first.complete
        assert second.complete
        assert script.log.index(1) < script.log.index(5)
        assert script.written() == [1, 5, 7]


def test_threads_share_the_pieces_of_one_copy(script: Script) -> None:
    with closing(CPUDevice(2, batch_copy=script, piece_bytes=1)) as engine:
        _, event = submit(engine.stream("only"), script, 1, 3, 5)
        script.arrived.acquire()
        script.arrived.acquire()
        assert set(script.log) == {1, 3}
        script.go_on.set()
        event.synchronize()
        assert script.written() == [1, 3, 5]


def test_one_thread_serves_streams_in_turns(script: Script) -> None:
    with closing(CPUDevice(1, batch_copy=script, piece_bytes=1)) as engine:
        a, b = engine.stream("a"), engine.stream("b")
        _, first = submit(a, script, 1, 21, 23)
        script.arrived.acquire()
        _, second = submit(b, script, 31, 33, 35)
        script.go_on.set()
        first.synchronize()
        second.synchronize()
        assert script.log == [1, 31, 21, 33, 23, 35]


def test_an_event_makes_another_stream_wait(script: Script) -> None:
    with closing(CPUDevice(2, batch_copy=script)) as engine:
        a, b = engine.stream("a"), engine.stream("b")
        _, gate = submit(a, script, 1)
        script.arrived.acquire()
        gate.wait(b)
        behind, event = submit(b, script, 5)
        _, later_in_a = submit(a, script, 7)
        assert not behind.started
        script.go_on.set()
        event.synchronize()
        later_in_a.synchronize()
        assert script.log.index(1) < script.log.index(5)


def test_a_failure_belongs_to_its_copy_alone(script: Script) -> None:
    with closing(CPUDevice(1, batch_copy=script, piece_bytes=1)) as engine:
        stream = engine.stream("only")
        bad, bad_event = submit(stream, script, 11, 13, 15)
        good, good_event = submit(stream, script, 17)
        good_event.synchronize()
        with pytest.raises(TransferError, match="byte 13 is broken") as failure:
            bad_event.query()
        with pytest.raises(TransferError, match="byte 13 is broken"):
            bad_event.synchronize()
        assert isinstance(failure.value.__cause__, RuntimeError)
        assert not bad.complete
        assert good.complete
        assert script.written() == [11, 17]
        assert probe(bad_event) == (True, failure.value)
        assert probe(good_event) == (True, None)


def test_a_queued_copy_can_be_withdrawn_and_ends_at_once(script: Script) -> None:
    with closing(CPUDevice(1, batch_copy=script)) as engine:
        stream = engine.stream("only")
        running, event = submit(stream, script, 1)
        queued, queued_event = submit(stream, script, 5)
        script.arrived.acquire()
        assert stream.withdraw(queued)
        assert not stream.withdraw(queued)
        assert not stream.withdraw(running)
        assert queued_event.query()
        assert (queued.ended, queued.complete, queued.started) == (True, False, False)
        assert not event.query()
        script.go_on.set()
        event.synchronize()
        assert script.written() == [1]


def test_a_running_copy_stops_after_the_pieces_that_run(script: Script) -> None:
    with closing(CPUDevice(1, batch_copy=script, piece_bytes=1)) as engine:
        stream = engine.stream("only")
        copy, event = submit(stream, script, 1, 5, 7)
        script.arrived.acquire()
        stream.stop(copy)
        assert not event.query()
        script.go_on.set()
        event.synchronize()
        assert not copy.complete
        assert script.written() == [1]


def test_waiting_for_a_position_is_not_cut_short_by_a_withdrawal(script: Script) -> None:
    with closing(CPUDevice(2, batch_copy=script)) as engine:
        a, b = engine.stream("a"), engine.stream("b")
        submit(a, script, 1)
        withdrawn, _ = submit(a, script, 5)
        b.wait_for(a, withdrawn.position)
        behind, event = submit(b, script, 7)
        script.arrived.acquire()
        assert a.withdraw(withdrawn)
        assert not behind.started
        script.go_on.set()
        event.synchronize()
        assert script.log == [1, 7]


def test_the_owner_of_the_memory_lives_until_the_copy_has_ended(script: Script) -> None:
    class Owner: ...

    with closing(CPUDevice(1, batch_copy=script)) as engine:
        stream, event, owner = engine.stream("only"), CPUEvent(), Owner()
        alive = weakref.ref(owner)
        stream.copy(script.batch(1), keep_alive=owner)
        event.record(stream)
        del owner
        assert alive() is not None
        script.go_on.set()
        event.synchronize()
        assert alive() is None


def test_an_empty_copy_ends_too(script: Script) -> None:
    with closing(CPUDevice(1)) as engine:
        copy, event = submit(engine.stream("only"), script)
        event.synchronize()
        assert copy.complete


class Plan:
    """Tells a batch, on the engine's thread, when the test lets it."""

    def __init__(self, batch: CopyBatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.thread = 0
        self._batch = batch

    def __call__(self) -> CopyBatch:
        self.thread = threading.get_ident()
        self.reached.set()
        assert self.go_on.wait(30)
        return self._batch


def test_a_batch_may_be_told_by_a_function_which_a_thread_of_the_engine_calls(script: Script) -> None:
    with closing(CPUDevice(2, batch_copy=script)) as engine:
        stream, plan = engine.stream("only"), Plan(script.batch(5, 7))
        copy = stream.copy(plan, keep_alive=script)
        behind, event = submit(stream, script, 9)
        assert plan.reached.wait(30)
        assert not copy.started
        assert not behind.started
        plan.go_on.set()
        event.synchronize()
        assert plan.thread not in (0, threading.get_ident())
        assert copy.complete
        assert script.written() == [5, 7, 9]


def test_a_function_that_fails_fails_its_copy_alone(script: Script) -> None:
    with closing(CPUDevice(1, batch_copy=script)) as engine:
        stream, event = engine.stream("only"), CPUEvent()
        stream.copy(lambda: script.batch(1 // 0), keep_alive=script)
        event.record(stream)
        good, good_event = submit(stream, script, 5)
        good_event.synchronize()
        with pytest.raises(TransferError, match="a copy failed: integer division"):
            event.query()
        assert good.complete


@pytest.mark.parametrize("end", [CPUStream.withdraw, CPUStream.stop])
def test_a_copy_can_be_taken_back_while_its_batch_is_being_told(
    script: Script, end: Callable[[CPUStream, Copy], object]
) -> None:
    with closing(CPUDevice(1, batch_copy=script)) as engine:
        stream, plan = engine.stream("only"), Plan(script.batch(5))
        copy = stream.copy(plan, keep_alive=script)
        assert plan.reached.wait(30)
        end(stream, copy)
        _, event = submit(stream, script, 9)
        plan.go_on.set()
        event.synchronize()
        assert copy.ended
        assert not copy.complete
        assert script.written() == [9]


def test_closing_withdraws_what_is_queued_and_ends_the_threads(script: Script) -> None:
    threads = threading.active_count()
    engine = CPUDevice(3, batch_copy=script)
    assert threading.active_count() == threads
    stream = engine.stream("only")
    running, _ = submit(stream, script, 1)
    queued, _ = submit(stream, script, 5)
    script.arrived.acquire()
    assert threading.active_count() == threads + 3
    script.go_on.set()
    engine.close()
    engine.close()
    assert running.complete
    assert queued.ended
    assert threading.active_count() == threads
    with pytest.raises(ClosedError):
        submit(stream, script, 7)


def test_an_engine_needs_a_thread() -> None:
    with pytest.raises(InvalidArgument, match="at least one thread, got 0"):
        CPUDevice(0)


class ForeignEvent:
    def record(self, stream: object, /) -> None: ...

    def query(self) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def synchronize(self) -> None: ...

    def wait(self, stream: object, /) -> None: ...


def test_a_device_s_own_errors_become_transfer_errors() -> None:
    passed, error = probe(ForeignEvent())
    assert passed
    assert isinstance(error, TransferError)
    assert "illegal memory access" in str(error)
