"""The kit's public names: all there, seen alike by type checkers, and imported when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asyncoffload.testing


@pytest.mark.parametrize("name", asyncoffload.testing.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(asyncoffload.testing, name) is not None
    assert name in dir(asyncoffload.testing)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(asyncoffload.testing.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: statement.module
        for statement in blocks[-1].body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == asyncoffload.testing._MODULE_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GatedTear'"):
        asyncoffload.testing.GatedTear  # noqa: B018


def test_tiers_can_be_gated_without_pytest() -> None:
    script = (
        "import sys; from asyncoffload.testing import FaultyDisk, FaultyTier, GatedTier, SlowTier, VirtualTimeLoop; "
        "print({'pytest', 'hypothesis', 'torch'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("missing", ["hypothesis", "pytest", "pytest_asyncio"])
def test_without_its_extra_it_says_how_to_get_it(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from asyncoffload.testing import TierLaws"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr.endswith(f"MissingDependency: TierLaws needs {missing}: pip install 'asyncoffload[testing]'\n"), (
        run.stderr
    )
