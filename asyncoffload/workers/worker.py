"""Routes transfers to the handler of their pair of media."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from asyncoffload.errors import InvalidArgument
from asyncoffload.types import LoadStoreSpec, TransferResult, TransferSpec
from asyncoffload.workers.base import OffloadingHandler, Transfer

_log = logging.getLogger(__name__)


class OffloadingWorker:
    """Routes transfers by ``(src.medium(), dst.medium())``; one handler may serve several pairs."""

    def __init__(self) -> None:
        self._by_media: dict[tuple[str, str], OffloadingHandler] = {}
        self._by_types: dict[tuple[type, type], OffloadingHandler] = {}  # what was found before

    @property
    def handlers(self) -> list[OffloadingHandler]:
        """The handlers, each once."""
        return list(dict.fromkeys(self._by_media.values()))

    def register_handler(
        self, src_cls: type[LoadStoreSpec], dst_cls: type[LoadStoreSpec], handler: OffloadingHandler
    ) -> None:
        """Let a handler serve transfers between two kinds of specs.

        Raises:
            InvalidArgument: another handler, or this one, already serves the pair.
        """
        media = (src_cls.medium(), dst_cls.medium())
        if media in self._by_media:
            raise InvalidArgument(f"{self._by_media[media]!r} already serves {media[0]} to {media[1]}")
        self._by_media[media] = handler

    def submit(self, job_id: int, spec: TransferSpec, *, by_layer: bool = False) -> Transfer:
        """Launch a transfer; see :meth:`OffloadingHandler.submit`.

        Raises:
            InvalidArgument: no handler serves the pair of media, or as the handler says.
        """
        return self._handler_for(spec).submit(job_id, spec, by_layer=by_layer)

    async def transfer(self, job_id: int, spec: TransferSpec) -> TransferResult:
        """Submit and wait for the end; see :meth:`OffloadingHandler.transfer` for errors and cancellation.

        Raises:
            InvalidArgument: no handler serves the pair of media, or as the handler says.
        """
        return await self._handler_for(spec).transfer(job_id, spec)

    def transfer_async(self, job_id: int, spec: TransferSpec) -> bool:
        """Launch a transfer whose end :meth:`get_finished` will tell. False when it could not be launched.

        Whatever its handler raises is logged; nothing will be reported for such a job.

        Raises:
            InvalidArgument: no handler serves the pair of media.
        """
        handler = self._handler_for(spec)
        try:
            handler.submit(job_id, spec)
        except Exception:
            # The caller of this signature asked for a yes or no; handlers may be anybody's.
            _log.exception("job %d could not be launched by %r", job_id, handler)
            return False
        return True

    async def wait(self, job_ids: Iterable[int]) -> None:
        """Wait until these jobs have ended, at whatever handler; ids that none knows are ignored.

        Cancellation ends the waiting, not the jobs.
        """
        wanted = tuple(job_ids)
        for handler in self.handlers:
            await handler.wait(wanted)

    def synchronize(self, job_ids: Iterable[int]) -> None:
        """Block this thread until these jobs have ended; ids that no handler knows are ignored."""
        wanted = tuple(job_ids)
        for handler in self.handlers:
            handler.synchronize(wanted)

    def get_finished(self) -> list[TransferResult]:
        """The jobs that ended since the last call and whose owners did not take the result, each exactly once."""
        return [result for handler in self.handlers for result in handler.get_finished()]

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Close every handler, one after the other, also when one of them fails; see :meth:`OffloadingHandler.aclose`.

        Cancellation drops what is queued; what runs is still awaited, then the cancellation is raised.

        Raises:
            TierUnavailable: what the first handler that did not come to rest says.
        """
        failure: Exception | None = None
        cancelled: asyncio.CancelledError | None = None
        for handler in self.handlers:
            try:
                await handler.aclose(drain=drain and cancelled is None, drain_timeout=drain_timeout, timeout=timeout)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception as error:
                failure = failure or error
        if cancelled is not None:
            raise cancelled
        if failure is not None:
            raise failure

    def __repr__(self) -> str:
        pairs = ", ".join(f"{source} to {destination}" for source, destination in self._by_media)
        return f"OffloadingWorker({pairs or 'no handlers'})"

    def _handler_for(self, spec: TransferSpec) -> OffloadingHandler:
        source, destination = spec
        handler = self._by_types.get((type(source), type(destination)))
        if handler is not None:
            return handler
        media = (source.medium(), destination.medium())
        handler = self._by_media.get(media)
        if handler is None:
            served = ", ".join(f"{s} to {d}" for s, d in self._by_media) or "nothing yet"
            raise InvalidArgument(f"no handler serves {media[0]} to {media[1]}: register one (served: {served})")
        self._by_types[type(source), type(destination)] = handler
        return handler
