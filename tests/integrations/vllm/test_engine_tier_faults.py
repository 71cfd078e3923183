"""Blocks that are damaged or cannot be read, under a real engine: computed anew, with the same answers, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integrations.vllm.engine import CACHED_TOKENS, Engine, Expected, running, tiering
from tests.integrations.vllm.tier_engine import KEYS, SMALL, ask_from_tier, file_tier

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are many
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture(scope="module")
def engine(model: Path, expected: Expected, root: Path) -> Iterator[Engine]:  # noqa: ARG001 (one engine at a time)
    """One engine for all faults, each with a prompt of its own."""
    with running(model, tiering(file_tier(root), host_blocks=SMALL)) as engine:
        yield engine


def files_of(engine: Engine, number: int, root: Path) -> list[Path]:
    """Ask a prompt for the first time; the files that appeared."""
    engine.settle()
    before = set(root.rglob("*.bin"))
    engine.ask(number)
    engine.settle()
    return sorted(set(root.rglob("*.bin")) - before)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4096])


@pytest.mark.parametrize(("number", "damage"), [(1, flip), (2, truncate)], ids=["flipped", "truncated"])
def test_a_damaged_block_is_computed_anew_and_stored_again(
    engine: Engine, expected: Expected, root: Path, number: int, damage: Callable[[Path], None]
) -> None:
    files = files_of(engine, number, root)
    damage(files[len(files) // 2])
    engine.evict_device()
    corrupt = engine.metric(KEYS, direction="load", status="corrupt")
    [answer] = engine.ask(number)
    assert answer.same_text(expected(number))
    assert answer.cached < CACHED_TOKENS
    assert engine.metric(KEYS, direction="load", status="corrupt") - corrupt == 1
    engine.settle()
    ask_from_tier(engine, number, expected)


def test_a_directory_that_cannot_be_read_costs_hits_and_nothing_else(
    engine: Engine, expected: Expected, root: Path
) -> None:
    files_of(engine, 3, root)
    engine.evict_device()
    [directory] = [path for path in root.iterdir() if path.is_dir()]
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("in the way")
    failed = engine.metric(KEYS) - engine.metric(KEYS, status="done")
    for number in (3, 4):
        [answer] = engine.ask(number)
        assert answer.same_text(expected(number))
        assert answer.cached == 0
    engine.settle()
    assert engine.metric(KEYS) - engine.metric(KEYS, status="done") > failed

    directory.unlink()
    aside.rename(directory)
    engine.forget_device()
    engine.ask(3)
    engine.settle()
    ask_from_tier(engine, 3, expected)
