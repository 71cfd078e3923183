"""The stack in numbers: a snapshot that any thread may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncoffload.aio.durations import DurationCounts
from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.core.primary import PrimaryStats
from asyncoffload.device.base import EngineCount
from asyncoffload.managers.call_counts import CallStats
from asyncoffload.types import Status


@dataclass(frozen=True, slots=True)
class VerbStats:
    """The calls of one verb, since the start; those with malformed arguments do not count.

    Attributes:
        durations: how long those took that have ended.
        in_flight: how many have not.
        ok, cancelled, failed: how those ended that have.
    """

    durations: DurationCounts
    in_flight: int
    ok: int
    cancelled: int
    failed: int


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """The blocks that calls named which ended well, since the start.

    Attributes:
        queried, found: blocks of lookups, and those of them that some tier had.
        loaded: blocks that loads brought into device blocks, by the tier they came from; ``"CPU"`` is the primary.
        missed: blocks of loads that were not brought, by what ended the prefix.
        computed: blocks of loads that were not brought since they are quicker to compute, as far as was judged.
        stored, present, shed: blocks of stores, as :class:`~asyncoffload.StoreResult` has them.
    """

    queried: int
    found: int
    loaded: Mapping[str, int]
    missed: Mapping[Status, int]
    computed: int
    stored: int
    present: int
    shed: int


@dataclass(frozen=True, slots=True)
class CopyStats:
    """The copies between device and host memory in one direction, since the start.

    Attributes:
        durations: how long those took that have ended, from their submission.
        in_flight: how many have not.
        failed: how many did not copy every byte, because of an error or because they were stopped.
        nbytes: bytes of the others.
    """

    durations: DurationCounts
    in_flight: int
    failed: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class OffloaderStats:
    """The stack in numbers. Its parts are of nearly, not exactly, the same moment.

    Attributes:
        primary: the slots of host memory, in blocks.
        tiers: per secondary tier its blocks by what became of them, and the tier's own counters.
        slot_bytes: bytes of one slot.
        verbs: the calls of ``lookup``, ``load``, ``prefetch`` and ``store``.
        blocks: the blocks that these named, but for those of ``prefetch``.
        copies: the copies by direction, ``"load"`` to the device and ``"store"`` from it.
        engines: the ways of copying by name, and what each has done.
        tier_calls: per secondary tier the calls of its ``lookup``, ``load`` and ``store``.
        shed: per secondary tier, how many of the blocks that were offered to it were put off, by what they ran into.
        pools: the pools of those tiers that have one.
    """

    primary: PrimaryStats
    tiers: Mapping[str, Mapping[str, float]]
    slot_bytes: int
    verbs: Mapping[str, VerbStats] = field(default_factory=dict)
    blocks: BlockCounts | None = None
    copies: Mapping[str, CopyStats] = field(default_factory=dict)
    engines: Mapping[str, EngineCount] = field(default_factory=dict)
    tier_calls: Mapping[str, Mapping[str, CallStats]] = field(default_factory=dict)
    shed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pools: Mapping[str, PoolStats] = field(default_factory=dict)
