"""Which vLLM is let in, and what is said to the others. No vLLM is needed for that."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

import asyncoffload.integrations.vllm as plugins
from asyncoffload.errors import ConfigError, MissingDependency
from asyncoffload.integrations.vllm.versions import TESTED, check_vllm

WITHOUT_VLLM = """
import sys
sys.modules["vllm"] = None
import asyncoffload.integrations.vllm as plugins
assert "torch" not in sys.modules
print(dir(plugins).count("FileSystemTier"))
"""

EACH_MODULE = """
from importlib import import_module
from pkgutil import iter_modules
for module in iter_modules(plugins.__path__, f"{plugins.__name__}."):
    try:
        import_module(module.name)
    except ImportError as error:
        print(type(error).__name__, str(error).partition(" (")[0])
"""


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))


@pytest.mark.parametrize("version", [*TESTED, f"{TESTED[0]}+cpu", f"{TESTED[0]}.post1"])
def test_tested_releases_pass(monkeypatch: pytest.MonkeyPatch, version: str, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, version)
    with caplog.at_level(logging.WARNING):
        check_vllm()
    assert not caplog.records


def test_a_repair_release_passes_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "0.32.7")
    with caplog.at_level(logging.WARNING):
        check_vllm()
    assert "0.32.7" in caplog.text
    assert TESTED[0] in caplog.text


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.32.0", "0.33.0.dev12+gabcdef", "dev", ""])
def test_other_releases_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, version)
    with pytest.raises(ConfigError) as refusal:
        check_vllm()
    assert version in str(refusal.value)
    assert TESTED[0] in str(refusal.value)


def test_a_missing_or_broken_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependency, match=f"cannot be imported.*{TESTED[0]}") as refusal:
        check_vllm()
    assert isinstance(refusal.value, ImportError)


@pytest.mark.parametrize("name", plugins.__all__)
def test_importing_without_vllm_is_fine_and_using_is_a_clear_error(name: str) -> None:
    script = f"{WITHOUT_VLLM}from asyncoffload.integrations.vllm import {name}"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert outcome.stdout == "1\n"
    assert "MissingDependency: vLLM cannot be imported" in outcome.stderr


def test_no_module_fails_otherwise_without_vllm() -> None:
    script = WITHOUT_VLLM + EACH_MODULE
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert set(outcome.stdout.splitlines()) == {"1", "MissingDependency vLLM cannot be imported"}


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="FileSystemTier"):
        plugins.FileSystemTeir  # noqa: B018
