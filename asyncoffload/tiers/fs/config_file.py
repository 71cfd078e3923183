"""``config.json``: what the blocks of a directory are, in clear, for operators and as a check."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiofiles
from aiofiles.threadpool.text import AsyncTextIOWrapper

from asyncoffload.core.layout import describe, fingerprint
from asyncoffload.errors import ConfigError
from asyncoffload.types import KVLayout

CONFIG = "config.json"

_CREATE = os.O_NOFOLLOW | os.O_CLOEXEC


def config_of(layout: KVLayout) -> dict[str, object]:
    """What a layout's file says."""
    return {"fingerprint": fingerprint(layout).hex(), "rank": layout.rank, **describe(layout)}


async def agree_on_config(path: str, config: Mapping[str, object], temporary: str, executor: Executor) -> None:
    """Make sure that the file at ``path`` says ``config``; write it if there is none.

    Args:
        path: the file.
        config: values that JSON keeps exactly.
        temporary: path under which the file is made before it appears; nobody else uses it.
        executor: runs the blocking calls.

    Raises:
        ConfigError: the file says something else; the message shows both.
        OSError: the operating system refused.
    """
    try:
        async with _opened(path, "r", executor, errors="replace") as file:
            found = await file.read()
    except FileNotFoundError:
        await _write(path, json.dumps(config, indent=2) + "\n", temporary, executor)
        return
    if _parsed(found) != config:
        raise ConfigError(
            f"{path} describes other blocks than this process makes, so their bytes cannot be shared.\n"
            f"there: {' '.join(found.split())}\n"
            f"here:  {json.dumps(config)}\n"
            "Use another root_dir, or move that directory away."
        )


async def _write(path: str, text: str, temporary: str, executor: Executor) -> None:
    run = asyncio.get_running_loop().run_in_executor
    async with _opened(temporary, "w", executor, opener=_private) as file:
        await file.write(text)
        await file.flush()
        # A config that a loss of power left empty would lock its blocks away.
        await run(executor, os.fsync, file.fileno())
    await run(executor, os.replace, temporary, path)


@asynccontextmanager
async def _opened(
    path: str, mode: Literal["r", "w"], executor: Executor, **options: Any
) -> AsyncIterator[AsyncTextIOWrapper]:
    """A text file. The context manager of aiofiles would close it in the loop's default executor."""
    file = await aiofiles.open(path, mode, encoding="utf-8", executor=executor, **options)
    try:
        yield file
    finally:
        await file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | _CREATE, 0o600)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
