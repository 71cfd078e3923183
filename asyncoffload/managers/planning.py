"""A planner in proportion to its primary: the same for every conductor."""

from __future__ import annotations

from collections.abc import Sequence

from asyncoffload.core.keeping import Keeper
from asyncoffload.core.primary import Primary
from asyncoffload.core.tiering import MAX_OP_BLOCKS, TieringPlanner
from asyncoffload.managers.runner import OpRunner
from asyncoffload.memory.region import HostRegion
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import WritePolicy

DEFAULT_PROMOTION_BYTES = 256 << 20


def quarter_of(region: HostRegion) -> int:
    """A quarter of the slots, at least one: what one purpose may take of the primary."""
    return max(1, region.n_slots // 4)


def planner_for(
    primary: Primary,
    tiers: Sequence[SecondaryTierManager],
    runner: OpRunner,
    region: HostRegion,
    *,
    promotion_bytes: int,
    cascade_blocks: int | None,
    write_policy: WritePolicy = "write_through",
    keeper: Keeper | None = None,
) -> TieringPlanner:
    """The planner over these tiers.

    Args:
        promotion_bytes: bound on the bytes on their way into the primary.
        cascade_blocks: bound on the blocks on their way into each tier; by default a quarter of the primary.
        write_policy: as :class:`TieringPlanner` takes it.
        keeper: as :class:`TieringPlanner` takes it.
    """
    quarter = quarter_of(region)
    return TieringPlanner(
        primary,
        [runner.hint_of(tier) for tier in tiers],
        promotion_blocks=promotion_bytes // region.slot_bytes,
        cascade_blocks=quarter if cascade_blocks is None else cascade_blocks,
        clean_window=min(quarter, MAX_OP_BLOCKS),
        write_policy=write_policy,
        keeper=keeper,
    )
