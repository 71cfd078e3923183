"""From the words of a command line to values. What they need is imported when they run, so that help is instant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

STDOUT = Path("-")

_MOST_DAYS = 100_000
"""Times further back cannot be told in nanoseconds."""


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
    """A span of time in days, from 0 to some hundred years."""
    try:
        span = float(text)
    except ValueError:
        span = -1.0
    if not 0.0 <= span <= _MOST_DAYS:
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
    if path is None or path == STDOUT:
        return path
    with _named(path):
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path.parent} is not a directory: make it first")
        if path.is_dir():
            raise typer.BadParameter(f"{str(path)!r} is a directory: name a file")
    return path


def picture(path: Path | None) -> Path | None:
    """A file for a picture, which can be drawn."""
    if path is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("a picture needs matplotlib: pip install 'asyncoffload[cli]', or leave --plot out")
    return output(path)


def directory(text: str) -> Path:
    """The name of a directory, which need not be there."""
    path = _path(text)
    with _named(path):
        if path.exists() and not path.is_dir():
            raise typer.BadParameter(f"{text!r} is not a directory: name one, or what is to become one")
    return path


def existing_directory(text: str) -> Path:
    """A directory that is there."""
    path = _path(text)
    with _named(path):
        if not path.exists():
            raise typer.BadParameter(f"{text!r} does not exist: name the root_dir of a tier, or make it first")
        if not path.is_dir():
            raise typer.BadParameter(f"{text!r} is not a directory: name the root_dir of a tier")
    return path


def root(text: str) -> Path:
    """A directory that is there, and may be the root of tiers."""
    from asyncoffload.tiers.fs.survey import is_layout_name

    path = existing_directory(text)
    parent, name = os.path.split(os.path.realpath(path))
    if is_layout_name(name):
        raise typer.BadParameter(f"{text!r} is the directory of a layout, one of those below a root: name {parent!r}")
    return path


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter(
            "the name is empty, as a variable is that was not set: name a directory, or . for this"
        )
    return Path(text)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The block looks at a path."""
    try:
        yield
    except OSError as refusal:
        message = f"{str(path)!r} cannot be looked at: {refusal.strerror or refusal}"
        if isinstance(refusal, PermissionError):
            message += "; run this as the user that the tiers run as"
        raise typer.BadParameter(message) from None
