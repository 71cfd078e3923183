"""The copies that belong to one lease, and end before it does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count
from types import TracebackType
from typing import Self

from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import TransferError
from asyncoffload.offloader.accounts import CopyAccount
from asyncoffload.types import CPULoadStoreSpec, LoadStoreSpec
from asyncoffload.workers.base import Transfer
from asyncoffload.workers.worker import OffloadingWorker

_job_ids = count(1)


class Copies:
    """Copies between device blocks and the slots of a lease, for the length of an ``async with`` block.

    Leaving the block waits for them; leaving it by an exception stops them first. Either way it is left only when
    nothing touches their memory any more.

    Args:
        worker: performs the copies.
        accounts: where they are counted, by direction: ``"load"`` to the device and ``"store"`` from it.

    Cancellation while it waits stops them as well, and is raised when they have ended.

    Raises:
        TransferError: on leaving, not every byte arrived; what lies at the destination is undefined.
    """

    def __init__(self, worker: OffloadingWorker, accounts: Mapping[str, CopyAccount]) -> None:
        self._worker = worker
        self._accounts = accounts
        self._transfers: list[Transfer] = []
        self._counted: list[CopyAccount] = []

    def submit(self, source: LoadStoreSpec, destination: LoadStoreSpec, *, by_layer: bool = False) -> Transfer:
        """Launch one more copy; see :meth:`OffloadingWorker.submit`."""
        transfer = self._worker.submit(next(_job_ids), (source, destination), by_layer=by_layer)
        account = self._accounts["store" if destination.medium() == CPULoadStoreSpec.medium() else "load"]
        account.began()
        self._transfers.append(transfer)
        self._counted.append(account)
        return transfer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._transfers:
            return
        if exc is not None:
            self._stop()
        ended = asyncio.ensure_future(self._worker.wait([transfer.job_id for transfer in self._transfers]))
        try:
            await outlive(ended, self._stop)
        finally:
            results = [await transfer for transfer in self._transfers]  # they have ended: this takes their results
            for account, result in zip(self._counted, results, strict=True):
                account.ended(result)
        failed = next((result for result in results if not result.success), None)
        if failed is not None and exc is None:
            source, destination = failed.transfer_type
            raise TransferError(
                f"a copy from {source} to {destination} failed: {failed.error}", tier=destination
            ) from failed.error

    def _stop(self) -> None:
        for transfer in self._transfers:
            transfer.stop()
