"""The end of what lives on the loop: it always comes, and says what it had to leave behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import TierUnavailable

GRACE_SECONDS = 1.0
"""How much longer than its own time limit a closing may take."""

_log = logging.getLogger("asyncoffload.sync")


def close_on(
    loop: LoopThread, close: Callable[[], Coroutine[Any, Any, None]], timeout: float, left: Callable[[str, str], str]
) -> None:
    """Block until something is closed, or shortly longer than its time limit.

    Args:
        loop: where it lives.
        close: closes it within ``timeout`` seconds.
        timeout: seconds.
        left: tells what was left behind, from two pieces of a sentence: since when, and why.

    Raises:
        TierUnavailable: it was left behind; this was logged as well.
        WrongLoopError, InternalError: as :meth:`LoopThread.run`.
    """
    loop.check_process()
    try:
        loop.run(close, timeout + GRACE_SECONDS)
    except (TierUnavailable, TimeoutError) as error:
        text = left(f"was left behind after {timeout} seconds", str(error) or "it does not answer")
        _log.warning("%s", text)
        raise TierUnavailable(text) from error
