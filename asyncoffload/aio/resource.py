"""What an ``async with`` block starts and closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Self

from asyncoffload.errors import TierUnavailable


class AsyncResource(ABC):
    """Left by an exception, or not entered because of one, it drops what is queued."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready; idempotent."""

    @abstractmethod
    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Come to rest; idempotent."""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            with suppress(TierUnavailable):  # what went wrong is the one to see
                await self.aclose(drain=False)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose(drain=exc_type is None)
