"""A task under the control of the test."""

from __future__ import annotations

import asyncio
import threading


class Gate:
    """A task that blocks its thread until it is opened."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.opened.wait(30)
        return "through"
