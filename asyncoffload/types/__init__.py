"""The values that pass between the parts. Nothing here waits, allocates device memory or knows a tier."""

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
from asyncoffload.types.managing import OffloadingEvent, PrepareStoreOutput
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
    "CANCELLED",
    "DONE",
    "MISSING",
    "SHED",
    "BlockIDsLoadStoreSpec",
    "CPULoadStoreSpec",
    "GPULoadStoreSpec",
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
]
