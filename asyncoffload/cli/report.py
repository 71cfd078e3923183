"""What a replay has to tell, as plain figures: the table, the JSON file and the plot are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asyncoffload.types import Status

COMPUTED = "computed"
"""What the shares call the blocks that no tier had."""


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request.

    Attributes:
        finished: seconds since the start of the run.
        blocks: full blocks of the request.
        hits: blocks that were loaded, by the tier that had them.
        load_seconds: how long the load took; 0 where there was nothing to load.
        wrong_bytes: bytes among the loaded ones that were not what was once stored.
        stored: blocks that went from the device to the primary.
        shed: blocks that found no room in the primary.
        stopped_by: why the load ended before the prefix that the lookup had promised; None where it did not.
    """

    finished: float
    blocks: int
    hits: Mapping[str, int] = field(default_factory=dict)
    load_seconds: float = 0.0
    wrong_bytes: int = 0
    stored: int = 0
    shed: int = 0
    stopped_by: Status | None = None

    @property
    def loaded(self) -> int:
        """Blocks that were loaded, from whichever tier."""
        return sum(self.hits.values())


@dataclass(frozen=True, slots=True)
class TierAccount:
    """What one secondary tier did, in blocks.

    Attributes:
        promoted: read into the primary.
        cascaded: written from the primary.
        shed: writes that were put off because too many were under way.
        corrupt: blocks that did not pass their checksum.
        failed: other blocks that could not be read or written.
    """

    promoted: int = 0
    cascaded: int = 0
    shed: int = 0
    corrupt: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """What the offloader says of itself at the end.

    Attributes:
        evicted: blocks that left the primary to make room.
        lost: those among them that no tier had.
        tiers: the secondary tiers, by name.
    """

    evicted: int = 0
    lost: int = 0
    tiers: Mapping[str, TierAccount] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A few points of a distribution of seconds; all 0 where there was nothing to measure."""

    count: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Distribution:
        """The distribution of these samples."""
        if not len(seconds):
            return cls(0, 0.0, 0.0, 0.0)
        p50, p99, largest = np.percentile(np.asarray(seconds), [50, 99, 100])
        return cls(len(seconds), float(p50), float(p99), float(largest))


@dataclass(frozen=True, slots=True)
class Flow:
    """Blocks that went one way; the speed counts the whole run, idle times included."""

    blocks: int
    nbytes: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one run.

    Attributes:
        served: requests that ended.
        requests: requests of the traffic.
        seconds: wall time.
        cpu_seconds: processor time of the whole process.
        block_bytes: bytes of one block.
        blocks: full blocks of the requests that ended.
        hits: blocks by the tier they came from; ``"computed"`` are those that no tier had.
        flows: by direction, such as ``"CPU -> device"``.
        load: how long loads took, of those that had something to load.
        loop_lag: how late the event loop was.
        verified: loaded blocks whose every byte was compared.
        wrong_bytes: bytes that differed.
        cut_short: loads that ended before the promised prefix, by reason.
        shed: blocks that found no room in the primary.
        account: what the offloader says of itself.
        set_up: how the run was set up, in words, by option.
    """

    served: int
    requests: int
    seconds: float
    cpu_seconds: float
    block_bytes: int
    blocks: int
    hits: Mapping[str, int]
    flows: Mapping[str, Flow]
    load: Distribution
    loop_lag: Distribution
    verified: int
    wrong_bytes: int
    cut_short: Mapping[str, int]
    shed: int
    account: Account
    set_up: Mapping[str, str]

    @property
    def moved_bytes(self) -> int:
        """Bytes moved in all directions together."""
        return sum(flow.nbytes for flow in self.flows.values())


def report_of(
    served: Sequence[Served],
    *,
    requests: int,
    block_bytes: int,
    seconds: float,
    cpu_seconds: float,
    lag: Sequence[float],
    account: Account,
    primary: str,
    set_up: Mapping[str, str],
) -> Report:
    """Gather a run's figures; ``primary`` is the name of the primary tier among the hits."""
    found = sum((Counter(request.hits) for request in served), Counter[str]())
    blocks, loaded = sum(request.blocks for request in served), found.total()
    names = [primary, *account.tiers]
    moved = {
        f"device -> {primary}": sum(request.stored for request in served),
        f"{primary} -> device": loaded,
        **{f"{primary} -> {name}": tier.cascaded for name, tier in account.tiers.items()},
        **{f"{name} -> {primary}": tier.promoted for name, tier in account.tiers.items()},
    }
    return Report(
        served=len(served),
        requests=requests,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        block_bytes=block_bytes,
        blocks=blocks,
        hits={**{name: found[name] for name in names}, COMPUTED: blocks - loaded},
        flows={
            way: Flow(count, count * block_bytes, count * block_bytes / max(seconds, 1e-9))
            for way, count in moved.items()
        },
        load=Distribution.of([request.load_seconds for request in served if request.loaded]),
        loop_lag=Distribution.of(lag),
        verified=loaded,
        wrong_bytes=sum(request.wrong_bytes for request in served),
        cut_short=dict(Counter(request.stopped_by.value for request in served if request.stopped_by is not None)),
        shed=sum(request.shed for request in served),
        account=account,
        set_up=set_up,
    )
