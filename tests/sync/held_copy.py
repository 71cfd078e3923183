"""Copies between device and host that stop where the test says."""

from __future__ import annotations

import threading

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import copy_one_by_one

TIMEOUT = 30


class HeldCopy:
    """A batch copy that waits for the test. Open until it is shut."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.reached = threading.Semaphore(0)
        self.touching = 0

    def __call__(self, batch: CopyBatch) -> None:
        self.touching += 1
        if not self.opened.is_set():
            self.reached.release()
            assert self.opened.wait(TIMEOUT)
        copy_one_by_one(batch)
        self.touching -= 1
