"""Pauses of the scheduler while all of its requests wait for blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ScheduleEndContext

PAUSE_SECONDS = 0.001
"""Enough for a few dozen blocks, and what the first token comes later at most."""

NEWS_SECONDS = 0.004
"""The same where the pause ends with the first blocks that arrive."""


class Pauses:
    """Leaves the interpreter to other threads while vLLM has nothing to compute and waits for blocks.

    vLLM then schedules again at once, thousands of times a second, and asks for every key each time. That keeps the
    interpreter lock from the threads which fetch these very blocks and need it several times for each of them.
    While a request computes there is no need to pause: the model gives the lock away itself.
    """

    def __init__(self) -> None:
        self._computing: set[str] = set()

    def step_ended(self, context: ScheduleEndContext, pause: Callable[[], object] | None) -> None:
        """A step has been planned; pauses if all that happens is that blocks are on their way.

        A preempted request counts as computing: vLLM does not say when it is taken up again.

        Args:
            context: what vLLM says of the step.
            pause: lets a moment pass; None: no block is on its way.
        """
        self._computing.update(context.new_req_ids)
        if pause is not None and not self._computing:
            pause()

    def request_ended(self, request_id: str) -> None:
        """A request computes no more."""
        self._computing.discard(request_id)


def take_a_pause() -> None:
    """Let :data:`PAUSE_SECONDS` pass."""
    time.sleep(PAUSE_SECONDS)
