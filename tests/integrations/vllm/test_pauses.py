"""When the scheduler pauses."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.kv_offload.base import ScheduleEndContext

from asyncoffload.integrations.vllm.pauses import PAUSE_SECONDS, Pauses

pytestmark = pytest.mark.vllm


def test_it_pauses_only_while_blocks_are_all_that_anybody_waits_for() -> None:
    slept: list[float] = []
    pauses = Pauses(slept.append)
    nobody, first = ScheduleEndContext((), ()), ScheduleEndContext(("first",), ())

    pauses.step_ended(nobody, work_is_pending=False)
    assert not slept, "nothing is on its way"
    pauses.step_ended(nobody, work_is_pending=True)
    assert slept == [PAUSE_SECONDS]

    pauses.step_ended(first, work_is_pending=True)
    pauses.step_ended(ScheduleEndContext((), ("first",)), work_is_pending=True)
    assert slept == [PAUSE_SECONDS], "a request computes, or will soon"

    pauses.request_ended("first")
    pauses.request_ended("unknown")
    pauses.step_ended(nobody, work_is_pending=True)
    assert slept == [PAUSE_SECONDS] * 2
