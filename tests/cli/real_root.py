"""A root as operators find it: filled by real tiers, then damaged as disks, kills and neighbours damage it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from typer.testing import CliRunner, Result

from asyncoffload.cli.app import app
from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots, small_layout, some_keys
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVLayout

LAYOUT = small_layout()
OTHER = replace(LAYOUT, model="another", parallel=(("tp", 2),), rank=1)
DEAD = "0123456789abcdef"


def run(*arguments: str | Path) -> Result:
    """A command, in this process, as wide as tests like to read it."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def run_json(*arguments: str | Path) -> tuple[int, Any]:
    """The exit status of a command, and what it says as JSON."""
    result = run(*arguments, "--json", "-")
    return result.exit_code, json.loads(result.stdout)


def words(result: Result) -> str:
    """Everything that was printed, without the frames that break it into lines."""
    return " ".join(result.output.replace("│", " ").split())


def make_tier(root: Path, slots: Slots, **options: object) -> FileSystemTierManager:
    """A tier with two threads in each direction."""
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, **options)  # type: ignore[arg-type]


def store(root: Path, keys: Sequence[OffloadKey], layout: KVLayout = LAYOUT) -> None:
    """Store blocks with a tier that comes and goes."""

    async def once() -> None:
        slots = Slots(layout, len(keys))
        async with make_tier(root, slots) as tier:
            (await tier.store(slots.store_job(keys))).raise_for_failures()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(once())


def keys_of(count: int, layout: KVLayout = LAYOUT, name: object = "") -> list[OffloadKey]:
    """Some keys, of all groups in turn."""
    return some_keys(layout, count, name)


def path_of(root: Path, key: OffloadKey, layout: KVLayout = LAYOUT) -> Path:
    """Where a block lies."""
    return Path(block_path(str(root / directory_name(layout)), key))


def bytes_of(keys: Sequence[OffloadKey], layout: KVLayout = LAYOUT) -> int:
    """Bytes of the files of some blocks."""
    return sum(file_bytes(layout.group_bytes(int.from_bytes(key[-4:], "big"))) for key in keys)


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file, without changing its times."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path, nbytes: int) -> None:
    """Cut a file short."""
    with path.open("r+b") as file:
        file.truncate(nbytes)


def leave_temporary(root: Path, key: OffloadKey, layout: KVLayout = LAYOUT, owner: str = DEAD) -> Path:
    """What a writer leaves that was killed: part of a block, under a temporary name."""
    path = path_of(root, key, layout)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{owner}.tmp")
    temporary.write_bytes(b"half a block")
    return temporary


def use(path: Path, seconds: float) -> None:
    """Say when a file was last used, in seconds since the epoch."""
    os.utime(path, (seconds, seconds))
