"""A rule for the whole suite: a call of the library that blocks the event loop fails the test that provoked it.

Such are a file opened, a sleep, a socket read on the loop's thread. (That every asynchronous test runs on asyncio's own
loop and on uvloop is an option of the kit's pytest plug-in, ``asyncoffload_loops`` in pyproject.toml.)
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster


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
