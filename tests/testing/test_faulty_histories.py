"""Whatever goes wrong by plan, a faulty tier does not contradict itself: events, lookups, hints and loads agree."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from asyncoffload.testing import FaultyTier, Slots, small_layout, some_keys
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import LookupResult, Status

LAYOUT = small_layout()
KEYS = some_keys(LAYOUT, 6)
SOME = st.lists(st.sampled_from(KEYS), unique=True)
BAD = st.sampled_from([Status.MISSING, Status.CORRUPT, Status.SHED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED])
STEP = st.one_of(
    st.tuples(st.sampled_from(["store", "load", "lose", "damage", "lose inside"]), SOME),
    st.tuples(st.sampled_from(["plan store", "plan load"]), st.tuples(BAD, SOME)),
    st.tuples(st.just("behave"), st.just(())),
)
GONE = {Status.MISSING, Status.CORRUPT}


async def live_through(steps: list[tuple[str, object]]) -> None:
    slots = Slots(LAYOUT, len(KEYS))
    inner = FaultyTier(ExampleSecondaryTierManager(LAYOUT, slots.view))
    async with FaultyTier(inner, primary_kv_view=slots.view) as tier:
        told: set[object] = set()
        for what, argument in steps:
            match what, argument:
                case "store", list(keys):
                    result = await tier.store(slots.store_job(keys))
                    assert [*result.keys] == keys
                case "load", list(keys):
                    result = await tier.load(slots.load_job(keys))
                    for slot, (key, outcome) in enumerate(zip(keys, result.outcomes, strict=True)):
                        assert not outcome.ok or (slots.hold(slot, key) and key in told)
                        assert outcome.ok or not slots.hold(slot, key)
                        told.difference_update([key] if outcome.status in GONE else [])
                case "lose", list(keys):
                    tier.lose(keys)
                case "lose inside", list(keys):
                    inner.lose(keys)
                case "damage", list(keys):
                    tier.damage(keys)
                case (("plan store" | "plan load"), (Status() as bad, list(keys))):
                    tier.answers("store" if what == "plan store" else "load", bad, keys=keys)
                case _:
                    tier.behave()
            for event in tier.take_events():
                (told.difference_update if event.removed else told.update)(event.keys)
            found = {key for key, hit in zip(KEYS, await tier.lookup(KEYS), strict=True) if hit is LookupResult.HIT}
            assert found == told
            assert found == set(filter(tier.hint, KEYS))


@settings(deadline=None, max_examples=150)
@given(st.lists(STEP, max_size=20))
def test_one_story_is_told(steps: list[tuple[str, object]]) -> None:
    asyncio.run(live_through(steps))
