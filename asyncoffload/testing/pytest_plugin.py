"""Which event loop a test runs on, for pytest-asyncio.

=============================================== ======================================================================
``@pytest.mark.virtual_time``                   on a :class:`~asyncoffload.testing.VirtualTimeLoop`, made with the
                                                marker's keyword arguments
``@pytest.mark.loops("asyncio", "uvloop")``     once on each of these
ini option ``asyncoffload_loops``               the loops for all asynchronous tests without one of the markers
=============================================== ======================================================================

pytest loads this in every run of an environment with asyncoffload: it imports nothing, and leaves tests without the
markers, in projects without the option, as they are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
_OPTIONS = {"start", "horizon", "patience"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("asyncoffload_loops", f"loops for every asynchronous test, of: {', '.join(_LOOPS)}", "args", [])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time(start, horizon, patience): runs on a loop whose time jumps")
    config.addinivalue_line("markers", f"loops(*names): runs on each of these event loops, of: {', '.join(_LOOPS)}")


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    factories = _factories(metafunc) if inspect.iscoroutinefunction(metafunc.function) else {}
    if not factories:
        return (yield)
    hook = getattr(metafunc.config.hook, "pytest_asyncio_loop_factories", None)
    if hook is None or not hook.has_spec():
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: to choose a loop needs pytest-asyncio 1.4 or newer")
    # Whoever implements this hook of pytest-asyncio decides for every test, so it is there only for those that ask.
    answer = _LoopFactories(factories)
    metafunc.config.pluginmanager.register(answer)
    try:
        return (yield)
    finally:
        metafunc.config.pluginmanager.unregister(answer)


class _LoopFactories:
    def __init__(self, factories: Mapping[str, LoopFactory]) -> None:
        self._factories = factories

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_asyncio_loop_factories(self) -> Mapping[str, LoopFactory]:
        return self._factories


def _factories(metafunc: pytest.Metafunc) -> dict[str, LoopFactory]:
    test = metafunc.definition
    virtual, loops = test.get_closest_marker("virtual_time"), test.get_closest_marker("loops")
    if virtual is not None:
        if virtual.args or not virtual.kwargs.keys() <= _OPTIONS:
            raise _wrongly_marked(test, virtual, "start=, horizon= and patience=")
        return {"virtual": partial(_virtual, **virtual.kwargs)}
    if loops is not None and loops.kwargs:
        raise _wrongly_marked(test, loops, "names of loops")
    names = metafunc.config.getini("asyncoffload_loops") if loops is None else loops.args
    unknown = [name for name in names if name not in _LOOPS]
    if unknown:
        raise pytest.UsageError(f"{test.nodeid}: no event loop is called {unknown}; there are {', '.join(_LOOPS)}")
    return {name: _LOOPS[name] for name in names}


def _wrongly_marked(test: pytest.Item, marker: pytest.Mark, takes: str) -> pytest.UsageError:
    given = [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
    return pytest.UsageError(f"{test.nodeid}: {marker.name} takes {takes}, got {', '.join(given)}")


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _virtual(**options: Any) -> asyncio.AbstractEventLoop:
    from asyncoffload.testing.virtual_time import VirtualTimeLoop

    return VirtualTimeLoop(**options)


_LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": _uvloop, "virtual": _virtual}
