"""When the scheduler pauses."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.kv_offload.base import ScheduleEndContext

from asyncoffload.integrations.vllm.pauses import Pauses

pytestmark = pytest.mark.vllm


def test_it_pauses_only_while_blocks_are_all_that_anybody_waits_for() -> None:
    taken: list[str] = []
    pauses = Pauses()
    nobody, first = ScheduleEndContext((), ()), ScheduleEndContext(("first",), ())

    pauses.step_ended(nobody, None)
    pauses.step_ended(nobody, lambda: taken.append("nobody computes"))
    pauses.step_ended(first, lambda: taken.append("a request computes"))
    pauses.step_ended(ScheduleEndContext((), ("first",)), lambda: taken.append("it will go on soon"))
    pauses.request_ended("first")
    pauses.request_ended("unknown")
    pauses.step_ended(nobody, lambda: taken.append("it has ended"))
    assert taken == ["nobody computes", "it has ended"]
