"""The error tree: one class per situation, so that callers can tell what to do next.

Everything that asyncoffload raises on purpose is an :class:`OffloadError`. :class:`InternalError` stands apart:
it means a bug in this library, never a mistake of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence


class OffloadError(Exception):
    """Base of every error that asyncoffload raises on purpose."""


class ConfigError(OffloadError, ValueError):
    """A setting is unknown, malformed, or contradicts another one."""


class MissingDependency(ModuleNotFoundError, ConfigError):
    """A part of asyncoffload needs a package that is not installed, or broken; the message says how to get it."""


class InvalidArgument(OffloadError, ValueError):
    """An argument of a call is malformed; nothing was changed by the call."""


class WrongLoopError(OffloadError, RuntimeError):
    """An object that belongs to one event loop was used from another."""


class ClosedError(OffloadError):
    """The object was closed, or is closing, and takes no new work."""


class LeaseClosedError(OffloadError):
    """A lease was used after its ``async with`` block had ended."""


class TransferNotFinished(OffloadError):
    """The result of a transfer was asked for before the transfer had ended."""


class CapacityError(OffloadError):
    """The request can never fit, or did not fit before its deadline."""


class BlocksUnavailable(OffloadError):
    """Not every requested block could be made ready; nothing was pinned.

    Attributes:
        ready_prefix: how many of the leading keys were available, in blocks.
    """

    def __init__(self, message: str, *, ready_prefix: int) -> None:
        super().__init__(message)
        self.ready_prefix = ready_prefix


class TierUnavailable(OffloadError):
    """A tier cannot be reached, or did not come to rest within its time limit."""


class TransferError(OffloadError):
    """Some blocks of a transfer did not arrive.

    Attributes:
        tier: name of the tier or medium at which the transfer failed.
        done_keys: the keys whose blocks did arrive.
        failed_keys: the keys whose blocks did not.
    """

    def __init__(
        self,
        message: str,
        *,
        tier: str = "",
        done_keys: Sequence[bytes] = (),
        failed_keys: Sequence[bytes] = (),
    ) -> None:
        super().__init__(message)
        self.tier = tier
        self.done_keys = tuple(done_keys)
        self.failed_keys = tuple(failed_keys)


class TierIOError(TransferError, OSError):
    """The operating system refused an I/O call of a tier; ``errno`` is kept."""

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        tier: str = "",
        done_keys: Sequence[bytes] = (),
        failed_keys: Sequence[bytes] = (),
    ) -> None:
        TransferError.__init__(self, message, tier=tier, done_keys=done_keys, failed_keys=failed_keys)
        self.errno = errno


class CorruptBlockError(TransferError):
    """What a tier holds for a key is not the block that was stored under it."""


class TransferTimeout(TransferError, TimeoutError):
    """A transfer did not end within its deadline."""


class DeviceError(TransferError):
    """The device or its driver refused a call, or reports that earlier work failed.

    Attributes:
        code: the driver's number for what happened; 0 where it gave none.
        lost: the device takes no further work in this process.
    """

    def __init__(self, message: str, *, code: int = 0, lost: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.lost = lost


class InternalError(Exception):
    """A bug in asyncoffload itself, not a mistake of the caller: please report it."""
