"""A command that is told to end ends as if it were interrupted: it says what it has seen, and removes what it made."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_TOLD_TO_END = (signal.SIGTERM, signal.SIGHUP)
_SOON = 0.01


class EndSignals:
    """From now on, ``SIGTERM`` and ``SIGHUP`` interrupt the main thread, unless they are ignored.

    Python drops an interrupt that comes while an object is let go. Such a one comes again.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._usual_hook, sys.unraisablehook = sys.unraisablehook, self._come_again
        signal.signal(signal.SIGALRM, self._interrupt)
        for number in _TOLD_TO_END:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._interrupt)

    def status(self, code: object) -> object:
        """The exit status of the process, where the command's is ``code``: 128 and the signal that interrupted it."""
        return 128 + self._seen if self._seen and code == 128 + signal.SIGINT else code

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            self._seen = number
        interrupt = signal.getsignal(signal.SIGINT)  # a running event loop has put its own there
        if not callable(interrupt):  # interrupts are ignored, as those of a shell's background jobs are
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    def _come_again(self, dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _SOON)
        else:
            self._usual_hook(dropped)


@contextmanager
def interrupts_put_off() -> Iterator[Callable[[], None]]:
    """An interrupt waits until the function given back is called, which raises it; a second one does not wait."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, *_TOLD_TO_END)}
    heeded = {number: handler for number, handler in usual.items() if callable(handler)}
    waiting = 0

    def raise_it(number: int, frame: FrameType | None) -> None:
        heeded[signal.Signals(number)](number, frame)

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            raise_it(number, frame)
        waiting = number

    def now() -> None:
        if waiting:
            raise_it(waiting, None)

    ours = heeded if threading.current_thread() is threading.main_thread() else {}
    for number in ours:
        signal.signal(number, wait)
    try:
        yield now
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
