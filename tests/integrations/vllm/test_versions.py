"""Which vLLM is let in, and what is said to the others. No vLLM is needed for that."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from asyncoffload.errors import ConfigError
from asyncoffload.integrations.vllm.versions import TESTED, check_vllm

WITHOUT_VLLM = """
import sys
sys.modules["vllm"] = None
import asyncoffload.integrations.vllm as plugins
assert "torch" not in sys.modules
print(dir(plugins).count("FileSystemTier"))
plugins.FileSystemTier
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
    with pytest.raises(ConfigError, match=f"cannot be imported.*{TESTED[0]}"):
        check_vllm()


def test_importing_without_vllm_is_fine_and_using_is_a_clear_error() -> None:
    outcome = subprocess.run([sys.executable, "-c", WITHOUT_VLLM], capture_output=True, text=True, timeout=100)
    assert outcome.stdout == "1\n"
    assert "ConfigError: vLLM cannot be imported" in outcome.stderr


def test_other_names_are_not_there() -> None:
    import asyncoffload.integrations.vllm as plugins

    with pytest.raises(AttributeError, match="FileSystemTier"):
        plugins.FileSystemTeir  # noqa: B018
