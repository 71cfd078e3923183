"""An engine that is killed while it stores, and the next one on its directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.vllm.engine import CACHED_TOKENS, Expected, running, tiering
from tests.integrations.vllm.tier_engine import KEYS, SMALL, file_tier

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are many
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = Path("/dev/shm")

ENGINE = """
import sys
from pathlib import Path
from tests.integrations.vllm.engine import running, tiering
from tests.integrations.vllm.tier_engine import SMALL, file_tier

model, root = map(Path, sys.argv[1:])
with running(model, tiering(file_tier(root), host_blocks=SMALL)) as engine:
    for number in range(1000):
        engine.ask(number % 8)
        print("asked", number, flush=True)
"""


@pytest.fixture
def _no_shared_memory_left() -> Iterator[None]:
    """vLLM's region has a name until its engine ends in peace."""
    before = set(SHARED_MEMORY.glob("vllm_offload_*"))
    yield
    for left in set(SHARED_MEMORY.glob("vllm_offload_*")) - before:
        left.unlink()


@pytest.mark.usefixtures("_no_shared_memory_left")
def test_an_engine_after_one_that_was_killed(model: Path, expected: Expected, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENGINE, str(model), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as killed:
        assert killed.stdout is not None
        asked = sum(line.startswith("asked") for line in _lines_until(killed, "asked 2"))
        killed.kill()
    assert asked == 3, "the engine ended by itself"

    with running(model, tiering(file_tier(tmp_path), host_blocks=SMALL)) as engine:
        answers = engine.ask(0, 1, 2, 3)
        assert answers[0].cached == CACHED_TOKENS, "what it stored before its last prompts is there"
        for number, answer in enumerate(answers):
            assert answer.same_text(expected(number))
        assert engine.metric(KEYS, direction="load") == engine.metric(KEYS, direction="load", status="done") > 0


def _lines_until(process: subprocess.Popen[str], last: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line.strip() == last:
            return
