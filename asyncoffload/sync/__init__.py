"""The facade for callers that know nothing of event loops: submit, get finished, wait.

Each name is imported when it is first used (PEP 562): who wraps a tier need not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncoffload.sync.manager import SyncOffloadingManager as SyncOffloadingManager
    from asyncoffload.sync.offloader import OffloadResult as OffloadResult
    from asyncoffload.sync.offloader import SyncOffloader as SyncOffloader
    from asyncoffload.sync.tier import SyncSecondaryTier as SyncSecondaryTier
    from asyncoffload.sync.worker import SyncOffloadingWorker as SyncOffloadingWorker

_MODULE_OF = {
    "OffloadResult": "offloader",
    "SyncOffloader": "offloader",
    "SyncOffloadingManager": "manager",
    "SyncOffloadingWorker": "worker",
    "SyncSecondaryTier": "tier",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
