"""The values that pass between the parts. Nothing here waits, allocates device memory or knows a tier."""

from asyncoffload.types.explanation import Explanation
from asyncoffload.types.history import ARRIVALS, DEPARTURES, Fate, Findings, HistoryEntry
from asyncoffload.types.jobs import (
    CANCELLED,
    DONE,
    MISSING,
    SHED,
    JobResult,
    KeyOutcome,
    TransferJob,
    TransferResult,
)
from asyncoffload.types.layout import KVGroup, KVLayout
from asyncoffload.types.managing import DirtyVictims, OffloadingEvent, PrepareStoreOutput, WritePolicy
from asyncoffload.types.requests import ANONYMOUS, RequestContext
from asyncoffload.types.specs import (
    BlockIDsLoadStoreSpec,
    CPULoadStoreSpec,
    GPULoadStoreSpec,
    Int32s,
    Int64s,
    LoadStoreSpec,
    TransferSpec,
)
from asyncoffload.types.vocabulary import LookupResult, Priority, Status

__all__ = [
    "ANONYMOUS",
    "ARRIVALS",
    "CANCELLED",
    "DEPARTURES",
    "DONE",
    "MISSING",
    "SHED",
    "BlockIDsLoadStoreSpec",
    "CPULoadStoreSpec",
    "DirtyVictims",
    "Explanation",
    "Fate",
    "Findings",
    "GPULoadStoreSpec",
    "HistoryEntry",
    "Int32s",
    "Int64s",
    "JobResult",
    "KVGroup",
    "KVLayout",
    "KeyOutcome",
    "LoadStoreSpec",
    "LookupResult",
    "OffloadingEvent",
    "PrepareStoreOutput",
    "Priority",
    "RequestContext",
    "Status",
    "TransferJob",
    "TransferResult",
    "TransferSpec",
    "WritePolicy",
]
