"""One CUDA device: streams of batched copies between it and host memory, marked by events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch

from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.event import CudaEvent
from asyncoffload.device.cuda.shared import Launcher, Leftovers, Shared
from asyncoffload.device.cuda.stream import CudaStream
from asyncoffload.errors import DeviceError, InvalidArgument
from asyncoffload.types import Int64s

PIECE_BYTES: Final = 16 << 20
"""What is launched at once, and cannot be stopped: a third of a millisecond on a fast link."""

WINDOW_BYTES: Final = 64 << 20
"""What a stream gives to the driver: enough that the link never waits for a thread that has to wake up, and little
enough that a small transfer of another stream is at most some milliseconds behind it."""


class CudaDevice:
    """Copies between one device of CUDA and host memory, in any number of streams. From any thread.

    It works in the primary context, which torch uses too, through streams, events and memory of its own. None of its
    methods waits for the device, save those that say so.

    Args:
        ordinal: the device, as torch counts.
        pinned: the host memory is pinned. Else the driver blocks while it copies, so nothing is launched on the
            submitter's thread.
        driver: by default the driver of this machine.
        current_stream: the handle of the driver stream to which the calling thread gives its work; by default torch's
            current stream.
        choose: the ways of copying; by default all that this machine has. Closed with the device.
        clock: seconds, for :attr:`CudaCopy.ended_at`.
        window_bytes: the most that a stream gives to the driver before earlier copies have ended; one piece at least.
        piece_bytes: what is launched at once.
        seams: host addresses that no copy may cross, ascending: the seams of a region that was pinned in pieces.

    Raises:
        DeviceError: there is no driver, or no such device.
        InvalidArgument: a size below 1.
    """

    def __init__(
        self,
        ordinal: int,
        *,
        pinned: bool,
        driver: Driver | None = None,
        current_stream: Callable[[], int] | None = None,
        choose: Launcher | None = None,
        clock: Callable[[], float] = time.monotonic,
        window_bytes: int = WINDOW_BYTES,
        piece_bytes: int = PIECE_BYTES,
        seams: Int64s | None = None,
    ) -> None:
        if window_bytes < 1 or piece_bytes < 1:
            raise InvalidArgument(
                f"window_bytes and piece_bytes must be 1 or more, got {window_bytes} and {piece_bytes}"
            )
        self._ordinal = ordinal
        driver = driver or Driver()
        launcher = EngineChoice(driver, ordinal, pinned=pinned) if choose is None else choose
        self._shared = Shared(
            driver,
            driver.retain_primary_context(ordinal),
            launcher,
            pinned=pinned,
            current_stream=current_stream or self._torch_stream,
            clock=clock,
            window_bytes=window_bytes,
            piece_bytes=piece_bytes,
            seams=seams,
        )
        self._streams: list[CudaStream] = []
        self._closing = threading.Lock()
        self._freed = False

    def reaches(self, device: torch.device) -> bool:
        """The memory of this device, and no other."""
        return device.type == "cuda" and device.index == self._ordinal

    def stream(self, name: str, direction: Direction) -> CudaStream:
        """A new stream, with a driver stream of its own that is freed with the device.

        Raises:
            ClosedError: the device was closed.
            DeviceError: the driver refuses, or the device was lost.
        """
        with self._closing:
            self._shared.require_open()
            stream = CudaStream(self._shared, name, direction)
            self._streams.append(stream)
        return stream

    def event(self) -> CudaEvent:
        """A new event, to be recorded in a stream of this device. It owns nothing of the driver's."""
        return CudaEvent(self._shared)

    def engines(self) -> Mapping[str, EngineCount]:
        """The ways of copying by name, and what each has done so far."""
        return self._shared.launcher.counts()

    def close(self) -> None:
        """Withdraw what is not launched, wait for the rest, and free everything; idempotent, and safe from any thread.

        Blocks, without the GIL, until what runs has ended: let the copies end first.
        """
        shared = self._shared
        with self._closing:
            if self._freed:
                return
            leftovers = Leftovers()
            with shared.lock:
                shared.closed = True
                for queue in shared.queues:  # all of them before any is waited for: one may wait for another
                    queue.withdraw_all(leftovers)
            leftovers.let_go()
            failures: list[DeviceError] = []
            with shared.bound():
                for stream in self._streams:
                    self._free(stream._queue.close, failures)
                self._free(shared.launcher.close, failures)
                for event in shared.marks.drain():
                    self._free(partial(shared.driver.destroy_event, event), failures)
            self._free(partial(shared.driver.release_primary_context, self._ordinal), failures)
            self._freed = True
        if failures and shared.lost is None:
            raise failures[0]

    def __repr__(self) -> str:
        shared = self._shared
        state = "closed" if shared.closed else f"lost: {shared.lost}" if shared.lost is not None else "open"
        memory = "pinned" if shared.pinned else "pageable"
        return f"CudaDevice(cuda:{self._ordinal}, {state}, {memory} host memory, {self._streams}, {shared.launcher!r})"

    @staticmethod
    def _free(call: Callable[[], None], failures: list[DeviceError]) -> None:
        """One thing that cannot be freed is no reason to keep the others. A device that was lost refuses all."""
        try:
            call()
        except DeviceError as error:
            failures.append(error)

    def _torch_stream(self) -> int:
        return int(torch.cuda.current_stream(self._ordinal).cuda_stream)
