"""What tests of offloading need, shipped: laws for tiers, tiers that misbehave on demand, and time that obeys.

=============================================== ======================================================================
:class:`TierLaws`                               what must hold for every tier, as tests: subclass it for yours
:class:`GatedTier`, :class:`FaultyTier`,        around any tier: hold its calls, let them fail, let blocks rot and go,
:class:`SlowTier`                               let them take their time
:class:`FaultyDisk`                             under the file tier: the disk is full, broken, slow, or it lies
:class:`PowerLoss`                              under the file tier: what would be left if the power failed
:class:`VirtualTimeLoop`, :class:`ManualClock`  an hour in no time, the same way each time
:class:`Gate`                                   a place where coroutines and threads wait for the test
=============================================== ======================================================================

``help()`` of each says how it is used; ``docs/writing-a-tier.md``, in the source tree, shows them at work. The laws and
the pytest markers ``virtual_time`` and ``loops`` (:mod:`asyncoffload.testing.pytest_plugin`) need
``pip install 'asyncoffload[testing]'``.

Each name is imported when it is first used, since pytest imports this package in every run of its environment.
"""

# ruff: noqa: I001 (one import per module reads better than one per name)
from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if _pytest := sys.modules.get("pytest"):  # before the modules whose assertions are to speak are imported
    _pytest.register_assert_rewrite("asyncoffload.testing.laws", "asyncoffload.testing.tier_model")

if TYPE_CHECKING:
    from asyncoffload.testing.clocks import Clock as Clock, LoopClock as LoopClock, ManualClock as ManualClock
    from asyncoffload.testing.fault_plan import FaultRule as FaultRule
    from asyncoffload.testing.faulty_disk import (
        Delayed as Delayed,
        FaultyDisk as FaultyDisk,
        Flipped as Flipped,
        Refused as Refused,
        Short as Short,
        Torn as Torn,
    )
    from asyncoffload.testing.gates import Gate as Gate
    from asyncoffload.testing.kills import StoringChild as StoringChild
    from asyncoffload.testing.power_loss import PowerLoss as PowerLoss
    from asyncoffload.testing.slots import (
        Slots as Slots,
        content_of as content_of,
        small_layout as small_layout,
        some_keys as some_keys,
    )
    from asyncoffload.testing.tier_hooks import TierHooks as TierHooks
    from asyncoffload.testing.tier_laws import TierLaws as TierLaws
    from asyncoffload.testing.tiers.faulty import FaultyTier as FaultyTier
    from asyncoffload.testing.tiers.gated import GatedTier as GatedTier
    from asyncoffload.testing.tiers.slow import SlowTier as SlowTier, Speed as Speed
    from asyncoffload.testing.tiers.wrapped import WrappedTier as WrappedTier
    from asyncoffload.testing.virtual_time import TimeStandsStill as TimeStandsStill, VirtualTimeLoop as VirtualTimeLoop

_NAMES_BY_MODULE = {
    "clocks": "Clock LoopClock ManualClock",
    "fault_plan": "FaultRule",
    "faulty_disk": "Delayed FaultyDisk Flipped Refused Short Torn",
    "gates": "Gate",
    "kills": "StoringChild",
    "power_loss": "PowerLoss",
    "slots": "Slots content_of small_layout some_keys",
    "tier_hooks": "TierHooks",
    "tier_laws": "TierLaws",
    "tiers.faulty": "FaultyTier",
    "tiers.gated": "GatedTier",
    "tiers.slow": "SlowTier Speed",
    "tiers.wrapped": "WrappedTier",
    "virtual_time": "TimeStandsStill VirtualTimeLoop",
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
