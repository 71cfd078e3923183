"""A load that arrives layer by layer, for the model that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncoffload.errors import InvalidArgument, TransferError
from asyncoffload.offloader.results import LoadResult
from asyncoffload.workers.base import Transfer


class LayerArrival:
    """Passed to one :meth:`Offloader.load`: tells which layers of its blocks have arrived, while it still runs.

    ::

        arrival = LayerArrival()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(offloader.load(keys, device_blocks, arrival=arrival))
            coming = await arrival.under_way()
            for layer in range(n_layers):
                arrival.wait(layer, torch.cuda.current_stream())  # or, for the host: await arrival.layer(layer)
                run(layer, coming.blocks)

    Blocks that have to come from a slower tier are copied as they come, each part layer by layer: layers then arrive
    in order once the last part is under way. The result of the load says whether everything arrived.
    """

    def __init__(self) -> None:
        self._transfers: list[Transfer] = []
        self._taken = False
        self._under_way: asyncio.Future[LoadResult] | None = None

    def __repr__(self) -> str:
        launched = self._under_way is not None and self._under_way.done()
        state = "under way" if launched else "being secured" if self._taken else "not passed to a load"
        return f"<LayerArrival {state}, {len(self._transfers)} copies>"

    async def under_way(self) -> LoadResult:
        """Wait until every copy of the load has been launched; returns what the load will have brought.

        May be called before the object is passed to a load. Cancellation: leaves at once; the load goes on.

        Raises:
            OffloadError: what ended the load before that.
        """
        future = self._future()
        await asyncio.wait([future])  # which leaves the future alone when the waiting is cancelled
        return future.result()

    async def layer(self, index: int) -> None:
        """Wait until a layer of all blocks is on the device. Layers are numbered in the order of the KV caches.

        Cancellation: leaves at once; the load goes on.

        Raises:
            TransferError: it did not arrive.
            InvalidArgument: there is no such layer.
            OffloadError: as :meth:`under_way`.
        """
        await self.under_way()
        for transfer in self._transfers:
            await transfer.layer(index)

    def wait(self, index: int, stream: Any) -> None:
        """Make what is submitted to a compute stream from now on wait for a layer; call it after :meth:`under_way`.

        The device cannot be told of a failure: look at the load's result before what was computed is used.

        Raises:
            TransferError: it is known by now that the layer did not arrive.
            InvalidArgument: the load is not under way, or there is no such layer.
            OffloadError: as :meth:`under_way`.
        """
        if self._under_way is None or not self._under_way.done():
            raise InvalidArgument("the load is not under way: await under_way() first")
        self._under_way.result()
        for transfer in self._transfers:
            transfer.layer_event(index).wait(stream)

    def launched(self, transfer: Transfer) -> None:
        """Called by the load: one more copy is on its way."""
        self._transfers.append(transfer)

    def complete(self, result: LoadResult) -> None:
        """Called by the load: these are all copies."""
        self._future().set_result(result)

    def _future(self) -> asyncio.Future[LoadResult]:
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().create_future()
        return self._under_way


@contextmanager
def under_way(arrival: LayerArrival | None) -> Iterator[None]:
    """The length of the load that an arrival, if any, is passed to: who waits for it learns of its end.

    Raises:
        InvalidArgument: it was passed to a load before.
    """
    if arrival is None:
        yield
        return
    if arrival._taken:
        raise InvalidArgument("a LayerArrival serves one load: make another one")
    arrival._taken = True
    future = arrival._future()
    try:
        yield
    except BaseException as error:
        if not future.done():
            cancelled = isinstance(error, asyncio.CancelledError)
            future.set_exception(TransferError("the load was cancelled") if cancelled else error)
            future.exception()  # nobody has to wait for the layers
        raise
