"""The whole stack on a disk that is full, unreadable or slow: the same answers, and hits again when it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.keys import block_hash_of
from asyncoffload.tiers.fs.blockfile import TEMPORARY
from tests.integrations.vllm.engine import CACHED_TOKENS, Engine, Expected, prompt, running
from tests.integrations.vllm.model import TOKENS_PER_BLOCK
from tests.integrations.vllm.stack_engine import CACHED, MOVED, checked, same, stack

if TYPE_CHECKING:
    from tests.integrations.vllm.troubled_spec import Disk

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM's own are many
    pytest.mark.timeout(300),
]

SPEC_MODULE = "tests.integrations.vllm.troubled_spec"
BLOCKS = CACHED_TOKENS // TOKENS_PER_BLOCK
"""Whole blocks of a prompt."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("troubled")


@pytest.fixture(scope="module")
def engine(model: Path, expected: Expected, root: Path) -> Iterator[Engine]:
    """One engine for all troubles; the prompts 1 and 2 are on disk, each other one belongs to one test."""
    from tests.integrations.vllm.troubled_spec import LOAD_SECONDS

    connector = stack(root, spec_name="TroubledSpec", spec_module_path=SPEC_MODULE, load_seconds=LOAD_SECONDS)
    events = {"enable_kv_cache_events": True, "publisher": "null"}
    with running(model, connector, kv_events_config=events) as engine:
        for number in (1, 2):
            assert same(engine.ask(number), [number], expected)
            settle(engine)
        yield engine


@pytest.fixture
def disk() -> Iterator[Disk]:
    from tests.integrations.vllm.troubled_spec import DISK

    yield DISK
    DISK.full = DISK.refuses_reads = False
    DISK.become_fast()


def settle(engine: Engine) -> None:
    """Let everything under way come to its end, and vLLM hear of it."""
    engine.settle()
    engine.manager._blocks.drain_jobs(60)
    engine.complete([prompt(0, 8)], 2)  # too short for a block
    engine.settle()
    assert not engine.manager.has_pending_work()
    state = engine.manager._blocks.stats()
    assert (state.doomed, state.writing, state.pinned) == (0, 0, 0)


def evict(engine: Engine) -> None:
    """Push everything out of device and host memory."""
    settle(engine)
    engine.evict_device()
    settle(engine)


def ask_disk(engine: Engine, number: int, expected: Expected) -> None:
    """Ask a prompt that is nowhere but on disk, and compare the answer and what vLLM and the workers count."""
    evict(engine)
    hits, by_disk, compared = engine.external_hits, engine.metric(CACHED, source="disk"), checked(engine)
    [answer] = engine.ask(number)
    assert answer.same_text(expected(number))
    assert answer.cached == CACHED_TOKENS
    settle(engine)
    assert engine.external_hits - hits == engine.metric(CACHED, source="disk") - by_disk == CACHED_TOKENS
    assert (checked(engine) - compared, checked(engine, "unknown")) == (BLOCKS, 0)


def ask_in_vain(engine: Engine, number: int, expected: Expected) -> None:
    """Ask a prompt of which nothing can be had."""
    hits = engine.external_hits
    [answer] = engine.ask(number)
    assert answer.same_text(expected(number))
    assert answer.cached == 0
    assert engine.external_hits == hits


def moved(engine: Engine, event: str) -> float:
    return engine.metric(MOVED, event=event)


def test_a_full_disk_costs_stores_and_nothing_else(engine: Engine, expected: Expected, root: Path, disk: Disk) -> None:
    evict(engine)
    stored, failed, shed = moved(engine, "stored"), moved(engine, "failed"), moved(engine, "shed")
    lost = engine.metric("vllm:asyncoffload_blocks", event="lost")
    files = set(root.rglob("*.bin"))
    disk.full = True
    for _ in range(2):
        ask_in_vain(engine, 3, expected)
        settle(engine)
        engine.forget_device()
        [from_host] = engine.ask(3)
        assert from_host.same_text(expected(3))
        assert from_host.cached == CACHED_TOKENS, "host memory goes on without the disk"
        evict(engine)
    assert moved(engine, "failed") > failed
    assert moved(engine, "failed") + moved(engine, "shed") - failed - shed >= 2 * BLOCKS
    assert moved(engine, "stored") == stored
    assert engine.metric("vllm:asyncoffload_blocks", event="lost") - lost >= 2 * BLOCKS
    assert set(root.rglob("*.bin")) == files
    assert not list(root.rglob(f"*{TEMPORARY}")), "what could not be written takes no room"
    ask_disk(engine, 1, expected)

    disk.full = False
    ask_in_vain(engine, 3, expected)
    ask_disk(engine, 3, expected)


@contextmanager
def reads_are_refused(root: Path, disk: Disk) -> Iterator[None]:  # noqa: ARG001
    disk.refuses_reads = True
    try:
        yield
    finally:
        disk.refuses_reads = False


@contextmanager
def something_is_in_the_way(root: Path, disk: Disk) -> Iterator[None]:  # noqa: ARG001
    [directory] = [path for path in root.iterdir() if path.is_dir()]
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("in the way")
    try:
        yield
    finally:
        directory.unlink()
        aside.rename(directory)


@pytest.mark.parametrize(
    ("trouble", "new", "is_stored"), [(reads_are_refused, 4, True), (something_is_in_the_way, 5, False)]
)
def test_an_unreadable_directory_costs_hits_until_it_is_back(
    engine: Engine,
    expected: Expected,
    root: Path,
    disk: Disk,
    trouble: Callable[[Path, Disk], AbstractContextManager[None]],
    new: int,
    is_stored: bool,
) -> None:
    evict(engine)
    refused, failed = moved(engine, "refused_failed"), moved(engine, "failed")
    with trouble(root, disk):
        for number in (2, new):
            ask_in_vain(engine, number, expected)
            settle(engine)
        evict(engine)
        ask_in_vain(engine, 2, expected)
        evict(engine)
    assert moved(engine, "refused_failed") - refused >= 2, "each time that it was asked for the old prompt"
    assert (moved(engine, "failed") == failed) == is_stored
    ask_disk(engine, 2, expected)
    if not is_stored:
        ask_in_vain(engine, new, expected)
    ask_disk(engine, new, expected)


def test_what_a_slow_disk_does_not_bring_in_time_is_computed(engine: Engine, expected: Expected, disk: Disk) -> None:
    evict(engine)
    for new in (6, 7):
        held = disk.held
        disk.become_slow()
        ask_in_vain(engine, 1, expected)
        ask_in_vain(engine, new, expected)
        assert disk.held > held
        assert engine.manager.has_pending_work(), "no answer has waited for the reads"
        disk.become_fast()
        ask_disk(engine, 1, expected)
        evict(engine)
    for new in (6, 7):
        engine.ask(new)  # for whose blocks there may have been no room beside the slow ones
        ask_disk(engine, new, expected)


def test_events_tell_what_lies_in_host_memory_and_on_disk(engine: Engine, expected: Expected, root: Path) -> None:
    evict(engine)
    settle_events(engine)
    old = files_of(root)
    places = Places(host_of(engine), old)
    published = engine.published_events()

    ask_in_vain(engine, 0, expected)
    settle_events(engine)
    new = files_of(root) - old
    assert len(new) == BLOCKS
    places.add_up(published)
    assert places == Places(host_of(engine), files_of(root))
    assert new <= places.host, "stored into host memory"

    ask_disk(engine, 0, expected)
    evict(engine)
    settle_events(engine)
    places.add_up(published)
    assert places == Places(host_of(engine), files_of(root))
    assert new.isdisjoint(places.host), "promoted, and evicted again"

    # Files that others have deleted are told to be gone when they are missed, and to be back.
    for file in root.rglob("*.bin"):
        if published_hash(file.stem) in new:
            file.unlink()
    published.clear()
    ask_in_vain(engine, 0, expected)
    settle_events(engine)
    gone = [event for event in published if type(event).__name__ == "BlockRemoved" and event.ownership == "fs"]
    assert {block for event in gone for block in event.block_hashes} == new
    places.add_up(published)
    assert places == Places(host_of(engine), files_of(root))
    assert new <= places.disk


@dataclass
class Places:
    """The hashes of blocks in host memory and on disk."""

    host: set[int]
    disk: set[int]

    def add_up(self, published: Sequence[Any]) -> None:
        """What events make of it; those of the device are left out."""
        places: dict[Any, set[int]] = {("CPU", None): self.host, ("STORAGE", "fs"): self.disk}
        for event in published:
            place = places.get((getattr(event, "medium", None), getattr(event, "ownership", None)))
            if place is not None:
                change = place.difference_update if type(event).__name__ == "BlockRemoved" else place.update
                change(event.block_hashes)


def published_hash(hexadecimal: str) -> int:
    """How vLLM writes a block's hash into events."""
    return int(hexadecimal, 16) & (1 << 64) - 1


def host_of(engine: Engine) -> set[int]:
    return {published_hash(block_hash_of(key).hex()) for key in engine.manager._blocks._ready}


def files_of(root: Path) -> set[int]:
    return {published_hash(file.stem) for file in root.rglob("*.bin")}


def settle_events(engine: Engine) -> None:
    """Settle, until all events are published: the tier's come with a step after the one that asked for them."""
    settle(engine)
    LoopThread.shared().run(lambda: asyncio.sleep(0))
    settle(engine)
