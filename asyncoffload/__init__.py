"""asyncio-native offloading of LLM KV-cache blocks to host memory and slower tiers, and back.

These are the public names. Each is imported when it is first used (PEP 562), so that importing the package takes
milliseconds and does not import torch.

Begin with ``help(asyncoffload.Offloader)``; ``OffloaderSettings.model_json_schema()`` explains every setting, and
``asyncoffload --help`` the commands. The pages in ``docs/`` are part of the source tree only.
"""

# ruff: noqa: I001 (one import per module reads better than one per name)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__: str

if TYPE_CHECKING:
    from asyncoffload.aio.dual_queue import DualQueueThreadPool as DualQueueThreadPool
    from asyncoffload.aio.job_state import JobState as JobState
    from asyncoffload.aio.waiting import outlive as outlive
    from asyncoffload.config import (
        FileSystemTierSettings as FileSystemTierSettings,
        MemoryTierSettings as MemoryTierSettings,
        OffloaderSettings as OffloaderSettings,
    )
    from asyncoffload.core.policies import ARC as ARC, LRU as LRU, EvictionPolicy as EvictionPolicy
    from asyncoffload.errors import (
        BlocksUnavailable as BlocksUnavailable,
        CapacityError as CapacityError,
        ClosedError as ClosedError,
        ConfigError as ConfigError,
        CorruptBlockError as CorruptBlockError,
        DeviceError as DeviceError,
        InternalError as InternalError,
        InvalidArgument as InvalidArgument,
        LeaseClosedError as LeaseClosedError,
        MissingDependency as MissingDependency,
        OffloadError as OffloadError,
        TierIOError as TierIOError,
        TierUnavailable as TierUnavailable,
        TransferError as TransferError,
        TransferNotFinished as TransferNotFinished,
        TransferTimeout as TransferTimeout,
        WrongLoopError as WrongLoopError,
    )
    from asyncoffload.keys import (
        OffloadKey as OffloadKey,
        block_hash_of as block_hash_of,
        group_of as group_of,
        make_key as make_key,
        scoped as scoped,
    )
    from asyncoffload.managers.base import OffloadingManager as OffloadingManager
    from asyncoffload.managers.cpu import CPUOffloadingManager as CPUOffloadingManager
    from asyncoffload.managers.leases import LoadLease as LoadLease, StoreLease as StoreLease
    from asyncoffload.managers.tiering import TieringOffloadingManager as TieringOffloadingManager
    from asyncoffload.memory.region import HostRegion as HostRegion
    from asyncoffload.offloader import (
        LayerArrival as LayerArrival,
        LoadResult as LoadResult,
        Offloader as Offloader,
        OffloaderStats as OffloaderStats,
        StoreResult as StoreResult,
    )
    from asyncoffload.tiers.base import SecondaryTierManager as SecondaryTierManager
    from asyncoffload.tiers.example import ExampleSecondaryTierManager as ExampleSecondaryTierManager
    from asyncoffload.tiers.fs.manager import FileSystemTierManager as FileSystemTierManager
    from asyncoffload.types import (
        ANONYMOUS as ANONYMOUS,
        CANCELLED as CANCELLED,
        DONE as DONE,
        MISSING as MISSING,
        SHED as SHED,
        CPULoadStoreSpec as CPULoadStoreSpec,
        Explanation as Explanation,
        Fate as Fate,
        Findings as Findings,
        GPULoadStoreSpec as GPULoadStoreSpec,
        HistoryEntry as HistoryEntry,
        JobResult as JobResult,
        KeyOutcome as KeyOutcome,
        KVGroup as KVGroup,
        KVLayout as KVLayout,
        LoadStoreSpec as LoadStoreSpec,
        LookupResult as LookupResult,
        OffloadingEvent as OffloadingEvent,
        PrepareStoreOutput as PrepareStoreOutput,
        Priority as Priority,
        RequestContext as RequestContext,
        Status as Status,
        TransferJob as TransferJob,
        TransferResult as TransferResult,
        TransferSpec as TransferSpec,
    )
    from asyncoffload.workers.base import OffloadingHandler as OffloadingHandler, Transfer as Transfer
    from asyncoffload.workers.device_host import DeviceHostHandler as DeviceHostHandler
    from asyncoffload.workers.devices import device_for as device_for
    from asyncoffload.workers.worker import OffloadingWorker as OffloadingWorker

_NAMES_BY_MODULE = {
    "aio.dual_queue": "DualQueueThreadPool",
    "aio.job_state": "JobState",
    "aio.waiting": "outlive",
    "config": "FileSystemTierSettings MemoryTierSettings OffloaderSettings",
    "core.policies": "ARC LRU EvictionPolicy",
    "errors": (
        "BlocksUnavailable CapacityError ClosedError ConfigError CorruptBlockError DeviceError InternalError "
        "InvalidArgument LeaseClosedError MissingDependency OffloadError TierIOError TierUnavailable TransferError "
        "TransferNotFinished TransferTimeout WrongLoopError"
    ),
    "keys": "OffloadKey block_hash_of group_of make_key scoped",
    "managers.base": "OffloadingManager",
    "managers.cpu": "CPUOffloadingManager",
    "managers.leases": "LoadLease StoreLease",
    "managers.tiering": "TieringOffloadingManager",
    "memory.region": "HostRegion",
    "offloader": "LayerArrival LoadResult Offloader OffloaderStats StoreResult",
    "tiers.base": "SecondaryTierManager",
    "tiers.example": "ExampleSecondaryTierManager",
    "tiers.fs.manager": "FileSystemTierManager",
    "types": (
        "ANONYMOUS CANCELLED DONE MISSING SHED CPULoadStoreSpec Explanation Fate Findings GPULoadStoreSpec "
        "HistoryEntry JobResult KVGroup KVLayout KeyOutcome LoadStoreSpec LookupResult OffloadingEvent "
        "PrepareStoreOutput Priority RequestContext Status TransferJob TransferResult TransferSpec"
    ),
    "workers.base": "OffloadingHandler Transfer",
    "workers.devices": "device_for",
    "workers.device_host": "DeviceHostHandler",
    "workers.worker": "OffloadingWorker",
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, "__version__"})
