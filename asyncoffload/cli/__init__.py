"""The command line. It is an extra: ``pip install 'asyncoffload[cli]'``."""

from __future__ import annotations


def main() -> None:
    """Run the command line; without its extra, say how to get it."""
    try:
        from asyncoffload.cli.app import app
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"asyncoffload's command line needs {missing.name}: pip install 'asyncoffload[cli]'"
        ) from missing
    app()
