"""What decides whether blocks may share a directory, and how slots are cut."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.layout import fingerprint
from asyncoffload.errors import ConfigError
from asyncoffload.integrations.vllm import layout
from asyncoffload.integrations.vllm.layout import SlotPlan, layout_of, revision_of


@dataclass(frozen=True)
class Group:
    tokens_per_block: int = 32
    layer_names: tuple[str, ...] = ("layer.0", "layer.1")
    group_id: int = 0


@dataclass(frozen=True)
class Model:
    name: str = "a/model"
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Cache:
    tokens_per_hash: int = 32
    blocks_per_chunk: int = 2


@dataclass(frozen=True)
class Parallel:
    rank: int = 0
    world_size: int = 2
    tp_size: int = 2
    pp_size: int = 1
    pcp_size: int = 1
    dcp_size: int = 1


@dataclass(frozen=True)
class Config:
    """As much of vLLM's ``OffloadingConfig`` as a layout depends on."""

    groups: tuple[Group, ...] = (Group(),)
    worker_kv_bytes_per_block: int = 40_000
    model: Model = Model()
    cache: Cache = Cache()
    parallel: Parallel = Parallel()
    kv_cache_layout: str | None = "NHD"


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM need not be installed to cut slots."""
    monkeypatch.setattr(layout, "_engine", lambda: "vLLM 0.0 on AVX512")


def of(config: Any, **arguments: Any) -> bytes:
    return fingerprint(layout_of(config, **({"order": "blocks"} | arguments)))


CHANGES: dict[str, Any] = {
    "model": Config(model=Model(name="b/model")),
    "type": Config(model=Model(dtype="float16")),
    "order of elements": Config(kv_cache_layout="HND"),
    "bytes": Config(worker_kv_bytes_per_block=80_000),
    "chunk": Config(cache=Cache(blocks_per_chunk=4)),
    "tokens": Config(groups=(Group(tokens_per_block=64),)),
    "layers": Config(groups=(Group(layer_names=("layer.1", "layer.0")),)),
    "groups": Config(groups=(Group(layer_names=("layer.0",)), Group(layer_names=("layer.1",), group_id=1))),
    "tp": Config(parallel=Parallel(tp_size=1, world_size=1)),
    "pp for tp": Config(parallel=Parallel(tp_size=1, pp_size=2)),
    "pcp": Config(parallel=Parallel(pcp_size=2)),
    "dcp": Config(parallel=Parallel(dcp_size=2)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_the_bytes_changes_the_fingerprint(what: str) -> None:
    assert of(CHANGES[what]) != of(Config())


def test_so_do_the_order_the_copies_the_revision_and_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {of(Config()), of(Config(), order="tensors"), of(Config(), replicated=True), of(Config(), revision="2")}
    monkeypatch.setattr(layout, "_engine", lambda: "vLLM 0.0 on AVX2")
    assert len({*seen, of(Config())}) == 5


def test_the_rank_does_not_since_slots_hold_all_ranks() -> None:
    assert of(Config(parallel=Parallel(rank=1))) == of(Config())


def test_slots_hold_the_parts_of_all_ranks_and_end_on_a_page() -> None:
    plan = SlotPlan.of(Config(), 1_000_000)
    assert (plan.part_bytes, plan.layout.block_bytes) == (80_000, 160_000)
    assert plan.slot_bytes == 40 * 4096
    assert plan.n_slots == 6


def test_groups_that_are_not_offloaded_leave_their_number_free() -> None:
    groups = (Group(group_id=0), Group(group_id=2))
    assert len(layout_of(Config(groups=groups), order="blocks").groups) == 3


def test_host_memory_that_holds_no_chunk_is_refused() -> None:
    with pytest.raises(ConfigError, match="cpu_bytes_to_use is 100000, but one chunk of 2 blocks has 163840 bytes"):
        SlotPlan.of(Config(), 100_000)


def test_a_cache_whose_blocks_have_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 0 bytes in 1 groups"):
        layout_of(Config(worker_kv_bytes_per_block=0), order="blocks")


def test_weights_that_were_replaced_have_another_revision(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    os.utime(weights, ns=(1, 1))
    before = revision_of(str(tmp_path))
    assert before == revision_of(str(tmp_path))
    os.utime(weights, ns=(2, 2))
    assert revision_of(str(tmp_path)) != before
    assert revision_of("somebody/some-model") == ""
    local = replace(Config(), model=Model(name=str(tmp_path)))
    assert layout_of(local, order="blocks").revision == revision_of(str(tmp_path))
