"""A slow or a full disk, and requests that leave in the middle: the engine goes on, and computes what does not come."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncoffload.testing import Delayed, Refused
from tests.integrations.vllm.engine import CACHED_TOKENS, Engine, Expected, prompt, running, tiering
from tests.integrations.vllm.model import TOKENS_PER_BLOCK
from tests.integrations.vllm.tier_engine import KEYS, SMALL, ask_from_tier, file_tier

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are many
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def engine(
    model: Path,
    expected: Expected,  # noqa: ARG001 (one engine at a time)
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    tier = file_tier(tmp_path_factory.mktemp("troubled"), load_seconds=0.5, io_threads=1)
    tier |= {"type": "TroubledTier", "module_path": "tests.integrations.vllm.troubled_tier"}
    with running(model, tiering(tier, host_blocks=SMALL)) as engine:
        engine.ask(1, 2)
        yield engine


@pytest.fixture
def slow_reads(engine: Engine) -> Iterator[None]:  # noqa: ARG001 (imports the tier)
    from tests.integrations.vllm.troubled_tier import TroubledTier

    with TroubledTier.disk.add("read", Delayed(0.2)):
        yield


def counted(engine: Engine, status: str) -> float:
    return engine.metric(KEYS, direction="load", status=status)


@pytest.mark.usefixtures("slow_reads")
def test_blocks_that_come_too_late_are_computed(engine: Engine, expected: Expected) -> None:
    engine.evict_device()
    given_up = counted(engine, "cancelled")
    [answer] = engine.ask(1)
    assert answer.same_text(expected(1))
    assert answer.cached < CACHED_TOKENS
    assert counted(engine, "cancelled") > given_up


@pytest.mark.usefixtures("slow_reads")
def test_a_request_that_leaves_takes_its_queued_loads_along(engine: Engine) -> None:
    from vllm import SamplingParams

    engine.evict_device()
    given_up, done = counted(engine, "cancelled"), counted(engine, "done")
    core = engine.llm.llm_engine
    [tier] = engine.manager.secondary_tiers
    core.add_request("leaves", {"prompt_token_ids": prompt(2)}, SamplingParams(max_tokens=4))
    while not tier.has_pending_work():
        core.step()
    core.abort_request(["leaves"])
    engine.settle()
    assert not tier.has_pending_work()
    assert not engine.manager.has_pending_work()
    skipped, loaded = counted(engine, "cancelled") - given_up, counted(engine, "done") - done
    assert skipped + loaded == CACHED_TOKENS // TOKENS_PER_BLOCK
    assert skipped > loaded


def test_when_the_disk_is_fast_again_so_are_the_loads(engine: Engine, expected: Expected) -> None:
    for number in (1, 2):
        engine.ask(number)  # which stores what was given up anew
        engine.settle()
        ask_from_tier(engine, number, expected)


def test_a_full_disk_costs_stores_and_nothing_else(engine: Engine, expected: Expected) -> None:
    from tests.integrations.vllm.troubled_tier import TroubledTier

    failed = engine.metric(KEYS, direction="store", status="failed")
    with TroubledTier.disk.add("write", Refused(errno.ENOSPC)):
        for _ in range(2):
            [answer] = engine.ask(3)
            assert answer.same_text(expected(3))
            assert answer.cached == 0
            engine.evict_device()
    assert engine.metric(KEYS, direction="store", status="failed") - failed >= 2 * CACHED_TOKENS // TOKENS_PER_BLOCK
    engine.ask(3)
    engine.settle()
    ask_from_tier(engine, 3, expected)
