"""What must hold for every tier, as tests."""

from __future__ import annotations

from importlib.util import find_spec

from asyncoffload.errors import MissingDependency

if _missing := [name for name in ("hypothesis", "pytest", "pytest_asyncio") if find_spec(name) is None]:
    raise MissingDependency(f"TierLaws needs {', '.join(_missing)}: pip install 'asyncoffload[testing]'")

from asyncoffload.testing.laws.closing import ClosingLaws
from asyncoffload.testing.laws.lasting import LastingLaws
from asyncoffload.testing.laws.outcomes import OutcomeLaws
from asyncoffload.testing.laws.round_trips import RoundTripLaws
from asyncoffload.testing.laws.slots import SlotLaws
from asyncoffload.testing.laws.turns import TurnLaws
from asyncoffload.testing.laws.visibility import VisibilityLaws


class TierLaws(RoundTripLaws, VisibilityLaws, OutcomeLaws, SlotLaws, ClosingLaws, TurnLaws, LastingLaws):
    """The laws. Subclass it as ``class TestSomething(TierLaws)`` and implement the hooks of :class:`TierHooks`."""
