"""Which releases of vLLM the plug-ins fit. What they implement is internal to vLLM, and changes with its releases."""

from __future__ import annotations

import logging
import re
from importlib import import_module

from asyncoffload.errors import ConfigError, MissingDependency

TESTED = ("0.32.0",)
"""Releases of vLLM that the plug-ins were tested with. Others of the same minor version are let pass with a warning,
since such releases repair faults; all others are refused."""

_log = logging.getLogger(__name__)


def check_vllm() -> None:
    """Make sure that vLLM can be imported, in a release that the plug-ins fit.

    Raises:
        MissingDependency: vLLM is missing or broken.
        ConfigError: its release is another; the message names both.
    """
    tested = ", ".join(TESTED)
    try:
        found: str = import_module("vllm").__version__
    except Exception as error:  # a broken installation fails in any way it likes
        raise MissingDependency(
            f"vLLM cannot be imported ({error!r}), and asyncoffload.integrations.vllm is of no use without it: "
            f"install a release that it was tested with: {tested}"
        ) from error
    if _release(found) in map(_release, TESTED):
        return
    if _release(found)[:2] not in {_release(version)[:2] for version in TESTED}:
        raise ConfigError(
            f"vLLM is of version {found}, and asyncoffload.integrations.vllm was tested with {tested} only: install "
            "that release, or a release of asyncoffload that was tested with yours"
        )
    _log.warning("vLLM is of version %s; asyncoffload.integrations.vllm was tested with %s", found, tested)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what marks its build."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
