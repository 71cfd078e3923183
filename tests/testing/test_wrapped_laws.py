"""A tier that misbehaves on demand keeps the laws of tiers as long as nobody demands it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncoffload.testing import FaultyDisk, FaultyTier, GatedTier, Refused, SlowTier, Speed
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVLayout
from tests.testing.around import LawsAround
from tests.tiers import test_example
from tests.tiers.fs import test_fs_laws

SPEED = Speed(bandwidth=1e8, latency=1e-4)


class AroundExample(LawsAround):
    inside = test_example.TestExampleTier()


class TestGatedTier(AroundExample):
    __test__ = True

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return GatedTier(ExampleSecondaryTierManager(layout, view))


class TestFaultyTier(AroundExample):
    __test__ = True

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return FaultyTier(ExampleSecondaryTierManager(layout, view), primary_kv_view=view)

    @contextmanager
    def broken_storage(self, tier: SecondaryTierManager) -> Iterator[None]:
        assert isinstance(tier, FaultyTier)
        refusal = OSError(errno.EIO, os.strerror(errno.EIO))
        with tier.answers("store", refusal), tier.answers("load", refusal):
            yield


class TestSlowTier(AroundExample):
    __test__ = True

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:  # noqa: ARG002
        return SlowTier(ExampleSecondaryTierManager(layout, view), layout, load=SPEED, store=SPEED, lookup_seconds=1e-4)


class TestAllAroundFiles(LawsAround):
    """One inside the other, and a file tier on a faulty disk inside them all."""

    __test__ = True
    persistent = True

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        self.inside = test_fs_laws.TestFileSystemTier()
        self.inside.place = place
        self._disk = FaultyDisk()
        files = FileSystemTierManager(layout, view, "fs", place, 3, 3, make_files=self._disk.make_files)
        return GatedTier(FaultyTier(SlowTier(files, layout)))

    @contextmanager
    def broken_storage(self, tier: SecondaryTierManager) -> Iterator[None]:  # noqa: ARG002
        with self._disk.add("create", Refused(errno.EIO)), self._disk.add("open", Refused(errno.EIO)):
            yield
