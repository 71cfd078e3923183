"""From the words of a command line to values. What they need is imported when they run, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer


def size(text: str | int) -> int:
    """Bytes from ``"8GiB"`` and the like; more than 0."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        nbytes = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(
            f'{text!r} is not a size: write bytes, or a number with a unit such as "8GiB"'
        ) from None
    if nbytes <= 0:
        raise typer.BadParameter(f"{text!r} is not more than 0 bytes")
    return nbytes


def sizes(text: str) -> list[int]:
    """Bytes from a list such as ``"64KiB,1MiB"``."""
    return [size(part.strip()) for part in text.split(",")]


def days(text: str | float) -> float:
    """A span of time in days, 0 or more."""
    try:
        span = float(text)
    except ValueError:
        span = -1.0
    if not 0.0 <= span < float("inf"):
        raise typer.BadParameter(f"{text!r} is no number of days: write 14, or 0.5 for twelve hours")
    return span


def threads(text: str) -> int | Literal["auto"]:
    """A number of threads, or ``"auto"``."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a number of threads nor auto")
    return int(text)


def output(path: Path | None) -> Path | None:
    """A file to be written, whose directory is there."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is not a directory: make it first")
    return path


def existing_directory(path: Path) -> Path:
    """A directory that is there."""
    if not path.exists():
        raise typer.BadParameter(f"{str(path)!r} does not exist: name the root_dir of a tier, or make it first")
    if not path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is not a directory: name the root_dir of a tier")
    return path
