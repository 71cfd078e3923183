"""Plug-ins for vLLM, named in its configuration; nothing is imported or started before one of them is asked for.

The tiers go behind vLLM's own host memory (``TieringOffloadingSpec``), each as ``type`` together with
``"module_path": "asyncoffload.integrations.vllm"``. The spec replaces vLLM's whole stack, as ``spec_name`` together
with ``"spec_module_path": "asyncoffload.integrations.vllm"``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec as AsyncOffloadingSpec
    from asyncoffload.integrations.vllm.tiers import FileSystemTier as FileSystemTier
    from asyncoffload.integrations.vllm.tiers import InMemoryTier as InMemoryTier

_MODULES = {"AsyncOffloadingSpec": "spec", "FileSystemTier": "tiers", "InMemoryTier": "tiers"}

__all__ = ["AsyncOffloadingSpec", "FileSystemTier", "InMemoryTier"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
