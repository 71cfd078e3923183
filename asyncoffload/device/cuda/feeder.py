"""The thread that launches what a stream had no room for, as earlier pieces end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from asyncoffload.device.cuda.shared import Shared
from asyncoffload.errors import DeviceError

if TYPE_CHECKING:
    from asyncoffload.device.cuda.launch_queue import LaunchQueue


class Feeder:
    """A daemon thread of one stream, started when it is needed first.

    It sleeps in the driver until the oldest piece of its stream has ended. One thread for all streams would sleep on
    one of them, and starve the others behind a store that waits for a long kernel.
    """

    def __init__(self, queue: LaunchQueue, shared: Shared, name: str) -> None:
        self._queue = queue
        self._name = name
        self._shared = shared
        self._work = threading.Condition(shared.lock)
        self._thread: threading.Thread | None = None

    def call(self) -> None:
        """There is something to launch. The lock is held."""
        if self._thread is None:
            name = f"asyncoffload-feed-{self._name}"
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._thread.start()
        else:
            self._work.notify()

    def end(self) -> None:
        """Let the thread end, and wait for that. The device is closed and nothing is left to launch."""
        with self._shared.lock:
            self._work.notify()
            self._shared.changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        try:
            self._shared.driver.bind(self._shared.context)
            while self._serve_one():
                pass  # and between two turns this thread keeps nobody's memory alive
        except Exception as cause:
            # Without this thread its stream would wait for ever.
            error = cause if isinstance(cause, DeviceError) else DeviceError(f"{cause!r} in {self._name!r}")
            error.__cause__ = cause if error is not cause else cause.__cause__
            self._shared.lose(error)

    def _serve_one(self) -> bool:
        queue = self._queue
        with self._shared.lock:
            if not self._wait_for_work():
                return False
            in_the_way = queue.oldest_in_the_way()
            queue._turn_taken = in_the_way is None
        if in_the_way is None:
            queue.launch_ready()
        else:
            queue.has_ended(in_the_way, block=True)
        return True

    def _wait_for_work(self) -> bool:
        """Sleep until the stream can go on with launching, or waits for the end of a piece; False when closed."""
        queue, shared = self._queue, self._shared
        while True:
            if not queue._to_launch:
                if shared.closed:
                    return False
                self._work.wait()
            elif queue._turn_taken:
                self._work.wait()
            elif queue.is_blocked():
                shared.changed.wait()
            else:
                return True
