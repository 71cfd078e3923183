"""Paired calls that come back as they went out take a short cut, and it leads where the long way leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.handed_out import HandedOut
from asyncoffload.core.policies import LRU
from asyncoffload.core.primary import Pins, Primary
from asyncoffload.core.write import Write
from asyncoffload.errors import OffloadError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import CPULoadStoreSpec, Int64s, PrepareStoreOutput

N_SLOTS = 5


def blocks(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(b"%08d" % number) for number in numbers]


def primary(n_slots: int = N_SLOTS) -> Primary:
    return Primary(BlockTable(n_slots, LRU()))


def put(plan: Primary, *numbers: int) -> None:
    assert plan.prepare_store(blocks(*numbers)) is not None
    plan.finish_store(plan.claim_store(blocks(*numbers)))


class LoadsTakenKeyByKey(HandedOut[Int64s]):
    """Finds no batch, so that every completion looks its keys up."""

    def take(self, keys: Sequence[OffloadKey]) -> Int64s | None:  # noqa: ARG002
        return None


class StoresTakenKeyByKey(HandedOut[Write]):
    """Finds no batch, so that every completion looks its keys up."""

    def take(self, keys: Sequence[OffloadKey]) -> Write | None:  # noqa: ARG002
        return None


def primary_without_short_cut() -> Primary:
    plan = primary()
    plan._loads = LoadsTakenKeyByKey()
    plan._stores = StoresTakenKeyByKey()
    return plan


def outcome(result: object) -> object:
    """A result in a form that compares."""
    if isinstance(result, CPULoadStoreSpec):
        return result.block_ids.tolist(), result.generations.tolist()
    if isinstance(result, PrepareStoreOutput):
        return list(result.keys_to_store), outcome(result.store_spec), list(result.evicted_keys)
    if isinstance(result, Pins):
        return list(result.keys), result.slots.tolist()
    return result


class ShortCutMachine(RuleBasedStateMachine):
    """Two primaries get the same calls; one of them never takes the short cut."""

    batches = st.lists(st.integers(0, 7), max_size=4).map(lambda numbers: blocks(*numbers))

    def __init__(self) -> None:
        super().__init__()
        self.plans = primary(), primary_without_short_cut()
        self.loaded: list[list[OffloadKey]] = []
        self.stored: list[tuple[PrepareStoreOutput, PrepareStoreOutput]] = []
        self.pins: list[tuple[Pins, Pins]] = []

    def both(self, call: Callable[[Primary, int], object]) -> tuple[object, object] | None:
        """The results of both, or None where both raised the same error."""
        results: list[object] = []
        errors: list[str] = []
        for which, plan in enumerate(self.plans):
            try:
                results.append(call(plan, which))
            except OffloadError as error:
                errors.append(repr(error))
        assert len(set(errors)) <= 1
        assert len(errors) in (0, 2)
        if errors:
            return None
        first, second = results
        assert outcome(first) == outcome(second)
        return first, second

    @rule(keys=batches)
    def prepare_load(self, keys: list[OffloadKey]) -> None:
        if self.both(lambda plan, _: plan.prepare_load(keys)):
            self.loaded.append(keys)

    @precondition(lambda self: self.loaded)
    @rule(data=st.data(), again=st.booleans())
    def complete_a_prepared_load(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.loaded) - 1))
        keys = self.loaded[index] if again else self.loaded.pop(index)
        self.both(lambda plan, _: plan.complete_load(keys))

    @rule(keys=batches)
    def complete_any_load(self, keys: list[OffloadKey]) -> None:
        self.both(lambda plan, _: plan.complete_load(keys))

    @rule(keys=batches)
    def prepare_store(self, keys: list[OffloadKey]) -> None:
        match self.both(lambda plan, _: plan.prepare_store(keys)):
            case PrepareStoreOutput() as first, PrepareStoreOutput() as second:
                self.stored.append((first, second))

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), again=st.booleans(), by_spec=st.booleans(), ok=st.booleans())
    def complete_a_prepared_store(self, data: st.DataObject, again: bool, by_spec: bool, ok: bool) -> None:
        index = data.draw(st.integers(0, len(self.stored) - 1))
        outputs = self.stored[index] if again else self.stored.pop(index)

        def complete(plan: Primary, which: int) -> object:
            output = outputs[which]
            return plan.finish_store(plan.claim_store(output.keys_to_store, output.store_spec if by_spec else None), ok)

        self.both(complete)

    @rule(keys=batches, ok=st.booleans())
    def complete_any_store(self, keys: list[OffloadKey], ok: bool) -> None:
        self.both(lambda plan, _: plan.finish_store(plan.claim_store(keys), ok))

    @rule(keys=batches)
    def begin_load(self, keys: list[OffloadKey]) -> None:
        match self.both(lambda plan, _: plan.begin_load(keys)):
            case Pins() as first, Pins() as second:
                self.pins.append((first, second))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def finish_load(self, data: st.DataObject) -> None:
        pins = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        self.both(lambda plan, which: plan.finish_load(pins[which]))

    @rule()
    def reset(self) -> None:
        self.both(lambda plan, _: plan.reset())

    @invariant()
    def the_state_is_the_same(self) -> None:
        first, second = self.plans
        assert first.stats() == second.stats()
        for state in ("ready", "writing", "doomed"):
            assert getattr(first.table, state) == getattr(second.table, state)


TestShortCut = ShortCutMachine.TestCase


def test_overlapping_loads_end_one_by_one() -> None:
    plan = primary()
    put(plan, 1, 2, 3)
    for numbers in ((1, 2), (1, 2), (1, 2), (2, 3), (1, 2, 3)):
        plan.prepare_load(blocks(*numbers))
    pinned = []
    for completed in ([1, 2], [1, 2, 3], [1], [2, 3], [1, 2], [2], [1, 2]):
        plan.complete_load(tuple(blocks(*completed)))
        pinned.append(plan.stats().pinned)
    assert pinned == [3, 3, 3, 2, 1, 0, 0]


def test_a_load_completed_in_part_has_no_claim_on_who_gets_its_slots() -> None:
    plan = primary(n_slots=1)
    put(plan, 1)
    plan.prepare_load(blocks(1))
    plan.complete_load(blocks(9, 1))
    put(plan, 2)
    plan.prepare_load(blocks(2))
    plan.complete_load(blocks(1))
    assert plan.stats().pinned == 1


def test_a_load_that_a_reset_came_between_frees_its_slots() -> None:
    plan = primary()
    put(plan, 1, 2)
    plan.prepare_load(blocks(1, 2))
    plan.reset()
    assert plan.stats().doomed == 2
    plan.complete_load(blocks(1, 2))
    assert (plan.stats().doomed, plan.stats().free) == (0, N_SLOTS)


def test_what_the_caller_does_to_its_lists_and_arrays_does_not_matter() -> None:
    plan = primary()
    keys = blocks(1, 2)
    output = plan.prepare_store(keys)
    assert output is not None
    assert isinstance(output.keys_to_store, list)
    output.keys_to_store.clear()
    output.store_spec.block_ids[:] = 4
    output.store_spec.generations[:] = 9
    assert plan.finish_store(plan.claim_store(keys)) == blocks(1, 2)
    spec = plan.prepare_load(keys)
    spec.block_ids[:] = 4
    keys.append(*blocks(3))
    plan.complete_load(blocks(1, 2))
    assert plan.stats().pinned == 0


@pytest.mark.parametrize("wrong", ["x", bytearray(9), []])
def test_completing_what_is_no_key_completes_nothing(wrong: OffloadKey) -> None:
    plan = primary()
    put(plan, 1)
    plan.prepare_load(blocks(1))
    plan.prepare_store(blocks(2))
    with pytest.raises(OffloadError, match="not bytes"):
        plan.complete_load([*blocks(1), wrong])
    with pytest.raises(OffloadError, match="not bytes"):
        plan.claim_store([*blocks(2), wrong])
    assert (plan.stats().pinned, plan.stats().writing) == (1, 1)
    plan.complete_load(blocks(1))
    assert plan.finish_store(plan.claim_store(blocks(2))) == blocks(2)
    assert plan.stats().pinned == 0
