"""What is remembered of a tier's answers: for a while, and not without a bound."""

from __future__ import annotations

from asyncoffload.sync.answers import FRESH_SECONDS, STALE_SECONDS, Answers
from asyncoffload.types import LookupResult
from tests.sync.held_tier import some_keys

HIT, MISS = LookupResult.HIT, LookupResult.MISS


def test_an_answer_is_given_for_a_while() -> None:
    (key,) = some_keys(1)
    answers = Answers()
    assert answers.stale(key, 0.0) is None
    answers.remember([key], MISS, 0.0)
    assert answers.stale(key, FRESH_SECONDS) is MISS
    assert answers.stale(key, STALE_SECONDS) is None


def test_the_oldest_answers_go_first() -> None:
    old, renewed, new = some_keys(3)
    answers = Answers(max_answers=2)
    answers.remember([old, renewed], MISS, 0.0)
    answers.remember([old], HIT, 0.1)
    answers.remember([new], MISS, 0.2)
    assert [answers.stale(key, 0.2) for key in (old, renewed, new)] == [HIT, None, MISS]


def test_barred_keys_are_bounded_and_set_free_by_a_store() -> None:
    first, second, third = some_keys(3)
    answers = Answers(max_answers=2)
    answers.bar([first, second])
    answers.bar([third], until=5.0)
    assert set(answers.barred) == {second, third}
    answers.stored([second, third], 1.0)
    assert not answers.barred
    assert answers.stale(second, 1.0) is HIT
