"""``python -m asyncoffload``: the command line."""

from __future__ import annotations

from asyncoffload.cli import main

if __name__ == "__main__":
    main()
