"""The planner knows tiers by index, everybody else by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asyncoffload.core.ops import Op
from asyncoffload.core.tiering import EVERY_TIER, TieringPlanner
from asyncoffload.errors import ConfigError, InvalidArgument, TierUnavailable
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import CPULoadStoreSpec, RequestContext


def names_of(tiers: Sequence[SecondaryTierManager]) -> list[str]:
    """The tiers' names, by index.

    Raises:
        ConfigError: two tiers have the same name, or one has that of the primary.
    """
    names = [tier.tier_type for tier in tiers]
    if len({CPULoadStoreSpec.medium(), *names}) <= len(names):
        raise ConfigError(f"every tier needs a name of its own, and none is {CPULoadStoreSpec.medium()}: {names}")
    return names


def allowed_tiers(names: Sequence[str], ctx: RequestContext) -> int:
    """One bit for each tier that may serve a call.

    Raises:
        InvalidArgument: the context names a tier that does not exist.
    """
    if ctx.tiers is None:
        return EVERY_TIER
    if unknown := ctx.tiers.difference(names):
        raise InvalidArgument(f"there is no tier {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return sum(1 << names.index(name) for name in ctx.tiers)


def tiers_by_name(
    tiers: Sequence[SecondaryTierManager], names: Sequence[str], ctx: RequestContext
) -> Mapping[str, SecondaryTierManager]:
    """The tiers that a request may ask, by name.

    Raises:
        InvalidArgument: the context names a tier that does not exist.
    """
    allowed = allowed_tiers(names, ctx)
    return {name: tier for index, (name, tier) in enumerate(zip(names, tiers, strict=True)) if allowed >> index & 1}


def ops_by_name(names: Sequence[str], ops: Iterable[Op]) -> str:
    """The ops, each with the name of its tier, for messages."""
    return ", ".join(f"{names[op.tier]} {op!r}" for op in ops)


def still_at_work(names: Sequence[str], ops: Iterable[Op], timeout: float | None, again: str) -> TierUnavailable:
    """The error that says that ops were waited for in vain for ``timeout`` seconds, and what to try again."""
    return TierUnavailable(
        f"after {timeout} s these still work on slots, leave their memory alone and {again} again: "
        + ops_by_name(names, ops)
    )


def counts_by_name(names: Sequence[str], planner: TieringPlanner) -> dict[str, dict[str, int]]:
    """Per tier: blocks promoted; cascades ``in_flight``, ``stored``, ``shed`` and ``failed``; and as
    ``refused_missing``, ``refused_corrupt`` and so on how often it could not give a block that was asked for.
    """
    return {
        name: {
            "promoted": planner.promoted[tier],
            **planner.cascade_counts(tier),
            **{f"refused_{status.value}": count for status, count in planner.refusals[tier].copy().items()},
        }
        for tier, name in enumerate(names)
    }
