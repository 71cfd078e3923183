"""What the framework asks of a device's events and copies; ``torch.cuda.Event`` has the first of the two surfaces."""

from __future__ import annotations

from typing import Any, Protocol

from asyncoffload.errors import DeviceError, TransferError


class DeviceEvent(Protocol):
    """A mark in a stream of device work: the surface of ``torch.cuda.Event``."""

    def record(self, stream: Any, /) -> None:
        """Mark everything submitted to the stream so far."""

    def query(self) -> bool:
        """Whether all that was marked has ended. Raises when it failed. Never recorded: True."""

    def synchronize(self) -> None:
        """Block this thread, without the GIL, until all that was marked has ended. Raises when it failed."""

    def wait(self, stream: Any, /) -> None:
        """Make what is submitted to the stream from now on wait for what was marked."""


def probe(event: DeviceEvent) -> tuple[bool, TransferError | None]:
    """Whether the marked work has ended, and why it failed; never raises.

    Devices report a failure of earlier work by raising from whatever call comes next, with an exception type of
    their own: here all but :class:`TransferError` become :class:`DeviceError`.
    """
    try:
        return event.query(), None
    except TransferError as error:
        return True, error
    except Exception as error:
        code = getattr(error, "error_code", 0)  # torch.AcceleratorError has it
        failure = DeviceError(f"the device reports that a transfer failed: {error}", code=code)
        failure.__cause__ = error
        return True, failure
