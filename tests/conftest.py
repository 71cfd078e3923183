"""Two rules for the whole suite.

Every asynchronous test runs twice, on asyncio's own event loop and on uvloop; and a call of the library that blocks
the event loop (a file opened, a sleep, a socket read on the loop's thread) fails the test that provoked it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop
from blockbuster import BlockBuster


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 (the hook's signature)
    item: pytest.Item,  # noqa: ARG001
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops that pytest-asyncio parametrises asynchronous tests over."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def _no_blocking_on_the_loop() -> Iterator[None]:
    """Raise ``BlockingError`` where the library blocks a thread that runs an event loop.

    Once per session: patching while I/O threads of an earlier test still run would be a race. Locks may be taken on
    the loop, since those of the library are held for a few instructions only. The test kit is called by tests, so its
    own file access is the test's.
    """
    import asyncoffload.testing

    detector = BlockBuster(scanned_modules="asyncoffload", excluded_modules=[asyncoffload.testing])
    for name, function in detector.functions.items():
        if "lock" not in name.lower():
            function.activate()
    yield
    detector.deactivate()
