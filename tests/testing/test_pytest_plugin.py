"""The pytest plug-in: loops by marker and by option, and no trace of it elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = "asyncoffload.testing.pytest_plugin"

TESTS = """
import asyncio
import sys

import pytest


def loop_name():
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

@pytest.mark.virtual_time(start=5.0, horizon=10_000)
async def test_virtual():
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() == 3605.0

@pytest.mark.loops("asyncio", "uvloop")
async def test_both(tmp_path):
    with open("loops", "a") as file:
        print(loop_name(), file=file)

async def test_as_ever():
    with open("as_ever", "a") as file:
        print(loop_name(), file=file)

class TestMany:
    pytestmark = pytest.mark.virtual_time

    async def test_in_a_class(self):
        await asyncio.sleep(3600)

def test_plain():
    pass
"""


def run_pytest(place: Path, *arguments: str, tests: str = TESTS, ini: str = "") -> subprocess.CompletedProcess[str]:
    (place / "test_loops.py").write_text(tests)
    (place / "pytest.ini").write_text(
        f"[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n{ini}"
    )
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", PLUGIN, "-q", "--strict-markers", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=100)


def test_markers_choose_the_loop(tmp_path: Path) -> None:
    run = run_pytest(tmp_path)
    assert "6 passed" in run.stdout, run.stdout + run.stderr
    assert (tmp_path / "loops").read_text() == "asyncio\nuvloop\n"
    assert (tmp_path / "as_ever").read_text() == "asyncio\n"


def test_an_option_chooses_for_all_others_before_a_conftest(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import asyncio\n"
        "def pytest_asyncio_loop_factories(config, item):\n"
        "    return {'theirs': asyncio.SelectorEventLoop, 'again': asyncio.SelectorEventLoop}\n"
    )
    run = run_pytest(tmp_path)
    assert "7 passed" in run.stdout, run.stdout + run.stderr
    assert (tmp_path / "as_ever").read_text() == "asyncio\nasyncio\n", "a project's own hook goes on as ever"
    run = run_pytest(tmp_path, ini="asyncoffload_loops = uvloop\n")
    assert "6 passed" in run.stdout, run.stdout + run.stderr
    assert (tmp_path / "as_ever").read_text() == "asyncio\nasyncio\nuvloop\n"


def test_a_loop_that_does_not_exist_is_named(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, tests="import pytest\n@pytest.mark.loops('trio')\nasync def test_it(): pass\n")
    assert "no event loop is called ['trio']; there are asyncio, uvloop, virtual" in run.stdout
    assert run.returncode != 0


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("virtual_time(100.0)", "virtual_time takes start=, horizon= and patience=, got 100.0"),
        ("virtual_time(strat=1)", "virtual_time takes start=, horizon= and patience=, got strat=1"),
        ("loops(names='uvloop')", "loops takes names of loops, got names='uvloop'"),
    ],
)
def test_what_a_marker_does_not_take_is_named(tmp_path: Path, marker: str, complaint: str) -> None:
    run = run_pytest(tmp_path, tests=f"import pytest\n@pytest.mark.{marker}\nasync def test_it(): pass\n")
    assert f"test_it: {complaint}" in run.stdout, run.stdout + run.stderr
    assert run.returncode != 0


def test_it_is_light_and_says_what_it_needs(tmp_path: Path) -> None:
    tests = """
import sys

import pytest

def test_nothing_was_imported():
    assert not {"torch", "numpy", "hypothesis", "uvloop", "asyncoffload.testing.virtual_time"} & sys.modules.keys()

@pytest.mark.virtual_time
def test_without_a_loop():
    pass
"""
    (tmp_path / "test_loops.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:asyncio", "-p", "no:hypothesispytest"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "2 passed" in run.stdout, run.stdout + run.stderr
    (tmp_path / "test_loops.py").write_text(tests + "\n@pytest.mark.virtual_time\nasync def test_with_a_loop(): pass\n")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "test_with_a_loop: to choose a loop needs pytest-asyncio" in run.stdout, run.stdout + run.stderr
