"""The directory and the file system below it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from asyncoffload.cli.health.findings import Finding, Level
from asyncoffload.cli.results import size_text
from asyncoffload.errors import OffloadError
from asyncoffload.tiers.fs.format import PAGE
from asyncoffload.tiers.fs.mounts import Mount, mount_of
from asyncoffload.tiers.fs.traits import DirectAlignment, Trait
from asyncoffload.tiers.fs.usage import Usage

_TOPIC = "file system"
_MEMORY = {"tmpfs", "ramfs"}
_LAYERED = {"overlay", "aufs", "fuse-overlayfs"}
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "beegfs", "gpfs", "9p", "glusterfs", "virtiofs"}

LITTLE_FREE = 1 << 30
_MANY_INODES = 100_000


def place_findings(root: str) -> Iterator[Finding]:
    """What can be seen without writing: type, mount options, space, rights."""
    mount, space, status = mount_of(root), os.statvfs(root), os.stat(root)
    yield _kind(mount)
    if "ro" in mount.options:
        yield Finding(_TOPIC, "mount", Level.BAD, f"{mount.point} is mounted read-only", "mount it for writing")
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    little = free < LITTLE_FREE
    yield Finding(
        _TOPIC,
        "free space",
        Level.WARNING if little else Level.OK,
        f"{size_text(free)} of {size_text(total)}",
        "a tier that finds no room stores nothing: make room" if little else "",
    )
    if space.f_files:
        few = space.f_favail < _MANY_INODES
        yield Finding(
            _TOPIC,
            "free inodes",
            Level.WARNING if few else Level.OK,
            f"{space.f_favail:,} of {space.f_files:,}",
            "each block takes one: choose larger blocks (block_size_factor), or make room" if few else "",
        )
    shared = bool(status.st_mode & 0o077)
    yield Finding(
        "directory",
        "rights",
        Level.NOTE if shared else Level.OK,
        f"mode {status.st_mode & 0o7777:04o}, owner {status.st_uid}, this process is user {os.geteuid()}",
        "others may look at it; what tiers make below it is for their own user only" if shared else "",
    )


def direct_finding(alignment: DirectAlignment) -> Finding:
    """Whether bytes can pass by the page cache."""
    name = "O_DIRECT"
    if not alignment.offset:
        return Finding(
            _TOPIC,
            name,
            Level.WARNING,
            f"refused ({alignment.refusal}): direct_io='auto' falls back to the page cache",
            "blocks take page cache that the primary tier could use; a local ext4 or XFS has it",
        )
    found = f"works from {alignment.offset} bytes in the file and {alignment.memory} in memory"
    if max(alignment.offset, alignment.memory) > PAGE:
        remedy = f"tiers align to {PAGE} bytes, so direct_io='auto' falls back to the page cache"
        return Finding(_TOPIC, name, Level.WARNING, found, remedy)
    return Finding(_TOPIC, name, Level.OK, found)


def trait_findings(traits: list[Trait]) -> Iterator[Finding]:
    """What the file system does of what the tier builds upon."""
    for trait in traits:
        level = Level.OK if trait.works else Level.WARNING
        yield Finding(_TOPIC, trait.name, level, trait.found, "" if trait.works else trait.matters)


def quota_finding(place: str) -> Finding:
    """Whether processes can keep a common account below a root, tried out in a directory of the caller's."""
    name = "quota and min_free"
    try:
        Usage(place, is_empty=lambda: True).leave()
    except (OSError, OffloadError) as refusal:
        why = f"cannot be had: {refusal}"
        return Finding(_TOPIC, name, Level.WARNING, why, "tiers refuse to start with bounds here: leave both out")
    return Finding(_TOPIC, name, Level.OK, "processes can keep a common account of the bytes")


def _kind(mount: Mount) -> Finding:
    found = f"{mount.kind} on {mount.source}, mounted at {mount.point}"
    if mount.kind in _MEMORY:
        level, remedy = Level.WARNING, "its files lie in memory and end with the machine: choose a directory on a disk"
    elif mount.kind in _LAYERED:
        level, remedy = Level.WARNING, "a layer of a container, slow and lost with it: mount a volume and choose that"
    elif mount.kind in _REMOTE or mount.kind.startswith("fuse"):
        level = Level.NOTE
        remedy = "not a local disk: it may hang, and locks reach other machines only if server and mount say so"
    else:
        level, remedy = Level.OK, ""
    return Finding(_TOPIC, "type", level, found, remedy)
