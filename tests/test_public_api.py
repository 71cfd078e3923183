"""The package is cheap to import, and its public names are what they say."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import asyncoffload


def _modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has imported after a statement."""
    script = f"import sys\n{statement}\nprint('MODULES', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import asyncoffload",
        "from asyncoffload import make_key, OffloaderSettings, ConfigError; make_key(b'x')",
        "from typer.testing import CliRunner; from asyncoffload.cli.app import app\n"
        "for line in ('--help', 'replay --help', '--version'): assert CliRunner().invoke(app, line).exit_code == 0",
    ],
    ids=["the package", "light names", "help"],
)
def test_torch_is_not_imported(statement: str) -> None:
    assert "torch" not in _modules_after(statement)


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    assert {name for name in _modules_after("import asyncoffload") if name.startswith("asyncoffload.")} == set()


@pytest.mark.parametrize("name", asyncoffload.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(asyncoffload, name) is not None
    assert name in dir(asyncoffload)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(asyncoffload.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == asyncoffload._MODULE_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'asyncoffload' has no attribute 'Offloadr'"):
        asyncoffload.Offloadr  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert asyncoffload.__version__ == version("asyncoffload")
