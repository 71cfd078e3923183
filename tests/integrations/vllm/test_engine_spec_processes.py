"""The whole stack in engines of several processes: shared memory, ranks, and what a kill leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.vllm.engine import CACHED_TOKENS, Answer, Engine, Expected, running
from tests.integrations.vllm.model import TOKENS_PER_BLOCK
from tests.integrations.vllm.stack_engine import CACHED, SMALL, checked, same, stack

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM's own are many
    pytest.mark.timeout(300),
]

BLOCKS = CACHED_TOKENS // TOKENS_PER_BLOCK


def children() -> list[int]:
    """The processes below this one, the youngest generation first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(
                    int(entry.name)
                )
    found = list(parents.get(os.getpid(), ()))
    for child in found:
        found += parents.get(child, ())
    return found[::-1]


def users_of_shared_memory() -> set[int]:
    """The processes that have memory of ours mapped."""
    found = set()
    for child in children():
        with contextlib.suppress(OSError):
            if "/memfd:asyncoffload" in (Path("/proc") / str(child) / "maps").read_text():
                found.add(child)
    return found


@contextlib.contextmanager
def killed_at_the_end(model: Path, root: Path) -> Iterator[Engine]:
    """An engine whose processes all get a SIGKILL."""
    engine = Engine(model, stack(root), processes=3, distributed_executor_backend="mp")
    yield engine
    users = users_of_shared_memory()
    assert len(users) == 2, "scheduler and worker"
    for process in users:
        os.kill(process, signal.SIGKILL)
    engine.close()


@pytest.fixture(scope="module")
def root_of_a_killed_engine(model: Path, expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to which an engine in three processes has stored prompts 1 to 3 before it was killed."""
    root = tmp_path_factory.mktemp("killed")
    with killed_at_the_end(model, root) as engine:
        assert same(engine.ask(1, 2, 3), (1, 2, 3), expected)
        engine.evict_device()
        answers = engine.ask(1, 2, 3)
        assert same(answers, (1, 2, 3), expected)
        assert [answer.cached for answer in answers] == [CACHED_TOKENS] * 3
        engine.settle()
        assert (checked(engine), checked(engine, "unknown")) == (3 * BLOCKS, 0)
    assert not users_of_shared_memory()
    assert "@asyncoffload-" not in Path("/proc/net/unix").read_text()
    return root


def test_a_killed_engine_is_restarted_on_its_directory(
    model: Path, expected: Expected, root_of_a_killed_engine: Path
) -> None:
    with running(model, stack(root_of_a_killed_engine), processes=3) as engine:
        answers = engine.ask(1, 2, 3)
        assert same(answers, (1, 2, 3), expected)
        assert [answer.cached for answer in answers] == [CACHED_TOKENS] * 3
        engine.settle()
        assert engine.external_hits == 3 * CACHED_TOKENS == engine.metric(CACHED, source="disk")
        assert (checked(engine), checked(engine, "unknown")) == (0, 3 * BLOCKS)


def test_two_ranks_share_slots_and_nothing_with_one(
    model: Path, root_of_a_killed_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks compute other sums, so only their own answers can be compared."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    connector = stack(root_of_a_killed_engine, host_blocks=2 * SMALL)
    with running(model, connector, processes=3, tensor_parallel_size=2) as engine:
        computed = engine.ask(1, 2)
        assert [answer.cached for answer in computed] == [0, 0], "the blocks of one rank are not theirs"
        engine.evict_device(80)  # the same memory holds twice as many blocks of half the size
        hits = engine.external_hits
        loaded = engine.ask(1, 2)
        assert all(map(Answer.same_text, loaded, computed))
        assert engine.external_hits - hits == 2 * CACHED_TOKENS
        engine.settle()
        for rank in ("rank 0", "rank 1"):
            assert engine.metric("vllm:asyncoffload_checked_loads", rank=rank, result="compared") == 2 * BLOCKS
            assert engine.metric("vllm:asyncoffload_checked_loads", rank=rank, result="unknown") == 0
    assert len([path for path in root_of_a_killed_engine.iterdir() if path.is_dir()]) == 2
