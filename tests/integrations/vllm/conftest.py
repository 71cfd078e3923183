"""What the tests share: host memory, and for engines one model and one run without offloading to compare with."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.integrations.vllm.engine import Answer, Expected, running
from tests.integrations.vllm.model import make_model
from tests.integrations.vllm.tier_rig import HostMemory

PROMPTS = range(8)


@pytest.fixture
def memory() -> HostMemory:
    """Host memory without an engine."""
    return HostMemory()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the small model."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def expected(model: Path) -> Expected:
    """What an engine that offloads nothing answers to the prompt of a number, below 8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        with running(model) as engine:
            answers = engine.ask(*PROMPTS)
            engine.forget_device()
            recomputed = engine.ask(*PROMPTS)
    assert [answer.cached for answer in answers + recomputed] == [0] * 2 * len(PROMPTS)
    assert all(map(Answer.same_text, answers, recomputed)), "the engine does not repeat itself: nothing can be compared"
    return lambda number: answers[number]
