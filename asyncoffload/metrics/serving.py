"""A registry for one stack, and an HTTP endpoint that serves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.waiting import outlive
from asyncoffload.config import PRIMARY_NAME
from asyncoffload.errors import ConfigError
from asyncoffload.metrics.collector import StackCollector
from asyncoffload.metrics.watching import EventCounts, LoopWatch
from asyncoffload.offloader import Offloader

DEFAULT_PORT = 9400
LOOPBACK = "127.0.0.1"


class MetricsServer:
    """An HTTP server of metrics; made by :func:`serve_metrics`.

    Attributes:
        registry: what it serves; further collectors may be registered.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.registry = registry
        self._host = host
        self._port = port
        self._running: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Where to scrape."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/metrics"

    def open(self) -> None:
        """Listen and serve, in threads. Blocks for a moment.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        try:
            self._running = start_http_server(self._port, self._host, self.registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics cannot be served on {self._host}, port {self._port}: {error}: choose another port, "
                "or 0 for any that is free"
            ) from error
        self._port = self._running[0].server_port

    def close(self) -> None:
        """Stop listening and end the threads. Blocks for up to half a second. Idempotent."""
        if self._running is not None:
            (server, thread), self._running = self._running, None
            server.shutdown()
            server.server_close()
            thread.join()

    def __repr__(self) -> str:
        return f"<MetricsServer {self.url if self._running is not None else 'not listening'}>"


@asynccontextmanager
async def collecting(
    offloader: Offloader, registry: CollectorRegistry | None = None
) -> AsyncIterator[CollectorRegistry]:
    """Collect the metrics of a stack, and watch the running event loop, for the length of an ``async with`` block.

    For those who have an HTTP server of their own, or push.

    Args:
        offloader: the stack; it may be closed inside the block, or outlive it.
        registry: where to register, until the block ends; by default a new one, which is worth reading also later.
            One registry takes one stack.

    Raises:
        ValueError: the registry has a stack already.
    """
    watch = LoopWatch()
    counts = EventCounts([PRIMARY_NAME, *(tier.tier_type for tier in offloader.tiers)])
    collector = StackCollector(offloader, [watch, counts])
    chosen = CollectorRegistry() if registry is None else registry
    chosen.register(collector)
    try:
        events = offloader.events()
        async with watch.watching():
            counting = asyncio.create_task(counts.count(events), name="metrics: events")
            try:
                yield chosen
            finally:
                counting.cancel()
                await asyncio.wait([counting])
                events.close()
    finally:
        if registry is not None:
            registry.unregister(collector)


@asynccontextmanager
async def serve_metrics(
    offloader: Offloader,
    port: int = DEFAULT_PORT,
    *,
    host: str = LOOPBACK,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[MetricsServer]:
    """Serve the metrics of a stack over HTTP, for the length of an ``async with`` block.

    The server has threads of its own: a scrape does not wait for the event loop, and answers while it is stuck.

    Args:
        offloader, registry: as :func:`collecting`.
        port: where to listen; 0 for any port that is free, see :attr:`MetricsServer.port`.
        host: whom to listen for; by default only this machine. Metrics are served to whoever asks.

    Raises:
        ConfigError: the address cannot be listened on.
        ValueError: as :func:`collecting`.

    Cancellation: what opens or closes the server ends first, then the cancellation is raised.
    """
    threads = IOThreads(1, name="asyncoffload-metrics")
    try:
        async with collecting(offloader, registry) as collected:
            server = MetricsServer(collected, host, port)
            try:
                await _in_thread(threads, server.open)
                yield server
            finally:
                await _in_thread(threads, server.close)
    finally:
        threads.shutdown(wait=False)


async def _in_thread(threads: IOThreads, call: Callable[[], None]) -> None:
    await outlive(asyncio.wrap_future(threads.submit(call)))
