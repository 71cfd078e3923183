"""Opening a directory of blocks: make it, agree on what it holds, say clearly why it cannot be had."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Executor

from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ConfigError, TierUnavailable
from asyncoffload.tiers.fs.account_file import UsageBusyError
from asyncoffload.tiers.fs.config_file import CONFIG, agree_on_config
from asyncoffload.tiers.fs.space import BlockSpace

_WRONG_SETTING = {
    errno.EACCES,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


async def open_space(space: BlockSpace, executor: Executor) -> None:
    """Open a space, and check its ``config.json`` or write it.

    Cancellation: raises when the system calls that are under way have ended.

    Raises:
        ConfigError: the directory cannot be used, or describes other blocks; the message shows both.
        TierUnavailable: the file system is in trouble, or another process keeps the account of the root locked.
    """
    try:
        await outlive(asyncio.get_running_loop().run_in_executor(executor, space.open))
        await agree_on_config(space.config_path, space.config, space.temporary(CONFIG), executor)
        await outlive(asyncio.get_running_loop().run_in_executor(executor, space.make_durable))
    except UsageBusyError as error:
        raise TierUnavailable(str(error)) from None
    except OSError as error:
        if error.errno in _WRONG_SETTING:
            raise ConfigError(
                f"root_dir {space.root_dir!r} cannot be used: {error}; choose one that this process may write to"
            ) from error
        raise TierUnavailable(f"cannot open {space.directory}: {error}") from error
