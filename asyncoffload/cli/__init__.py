"""The command line. It is an extra: ``pip install 'asyncoffload[cli]'``."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from asyncoffload.cli.signals import EndSignals


def main() -> None:
    """Run the command line; without its extra, say how to get it."""
    try:
        from asyncoffload.cli.app import app
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"asyncoffload's command line needs {missing.name}: pip install 'asyncoffload[cli]'"
        ) from missing
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without bars and arrows can still show the figures
    signals = EndSignals()
    try:
        app()
    except SystemExit as end:
        raise SystemExit(signals.status(end.code)) from None
