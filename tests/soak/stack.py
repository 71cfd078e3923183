"""The stack that the soak runs: host memory over a bounded file tier, on a disk and behind a tier that fail."""

from __future__ import annotations

import errno
from pathlib import Path

from asyncoffload import Offloader
from asyncoffload.testing import Delayed, FaultyDisk, FaultyTier, Flipped, Refused, Short, Torn
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVLayout, Status
from tests.offloader.rig import Device, settings
from tests.soak.traffic import LENGTH

PAGE_BYTES = 4096
BLOCK = file_bytes(2 * PAGE_BYTES)
QUOTA = 400 * BLOCK
SLOTS = 48
IO_TIMEOUT = 0.5
JOURNAL_BLOCKS = 50


def device_for(callers: int) -> Device:
    """Device blocks for so many callers, and a few that nobody uses."""
    return Device((callers + 1) * LENGTH, groups=(2,), shape=(PAGE_BYTES,))


def spoil(disk: FaultyDisk) -> None:
    """From now on a disk is full, refuses, tears, falls short, flips bits and dawdles now and then."""
    for call, number in (
        ("open", errno.EIO),
        ("create", errno.ENOSPC),
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("read", errno.EIO),
    ):
        disk.add(call, Refused(number), chance=0.01)  # type: ignore[arg-type]
    disk.add("write", Torn(4096), chance=0.005)
    disk.add("write", Short(), chance=0.01)
    disk.add("read", Short(), chance=0.005)
    disk.add("read", Flipped(5000), chance=0.005)
    for call in ("read", "write"):
        disk.add(call, Delayed(0.02), chance=0.01)  # type: ignore[arg-type]
        disk.add(call, Delayed(2 * IO_TIMEOUT), chance=0.0005)  # type: ignore[arg-type]


class SoakTier(FaultyTier[FileSystemTierManager]):
    """The file tier on such a disk, whose calls fail as a whole now and then."""

    def __init__(self, layout: KVLayout, view: memoryview, root: Path, *, seed: int) -> None:
        self.disk = FaultyDisk(seed=seed)
        tier = FileSystemTierManager(
            layout, view, "files", root, 2, 2, quota=QUOTA, io_timeout=IO_TIMEOUT, make_files=self.disk.make_files
        )
        super().__init__(tier, seed=seed, primary_kv_view=view)
        self.fail_anew()

    def fail_anew(self) -> None:
        """Let things go wrong from now on; what the plans remember of every block until now is forgotten."""
        self.recover()
        spoil(self.disk)
        for verb in ("lookup", "store", "load"):
            self.raises(verb, OSError(errno.EIO, "the soak broke this call"), chance=0.01)
        self.answers("load", Status.TIMED_OUT, chance=0.005)

    def recover(self) -> None:
        """Nothing fails any more."""
        self.behave()
        self.disk.recover()


def make_offloader(device: Device, root: Path, *, seed: int) -> tuple[Offloader, list[SoakTier]]:
    """An offloader over such a tier, which is put into the list when it is made."""
    tiers: list[SoakTier] = []

    def soak_tier(layout: KVLayout, view: memoryview) -> SoakTier:
        tiers.append(SoakTier(layout, view, root, seed=seed))
        return tiers[-1]

    plan = settings(device, SLOTS, slice_blocks=4, journal_blocks=JOURNAL_BLOCKS)
    return Offloader(plan, kv_caches=device.kv_caches, tiers=[soak_tier]), tiers
