"""Places behind the primary tier that keep blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from asyncoffload.tiers.base import SecondaryTierManager

__all__ = ["TIERS", "SecondaryTierManager"]


class _LazyTable(Mapping[str, type[SecondaryTierManager]]):
    """Names to classes; a class is imported when its name is looked up."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[SecondaryTierManager]:
        module, _, attribute = self._places[name].partition(":")
        found: type[SecondaryTierManager] = getattr(import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


TIERS: Mapping[str, type[SecondaryTierManager]] = _LazyTable(
    {
        "fs": "asyncoffload.tiers.fs.manager:FileSystemTierManager",
        "memory": "asyncoffload.tiers.example:ExampleSecondaryTierManager",
    }
)
"""The tiers that settings can name, by their ``type``."""
