"""What the commands have in common: how they end, show what they found, and how far they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ByteSize
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asyncoffload.errors import InternalError, InvalidArgument, OffloadError

ALL_WELL, SOMETHING_WRONG, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130
STDOUT = Path("-")


def ended(work: Callable[[], int]) -> int:
    """The exit status of a command: what ``work`` says, or that it could not run, with a word on standard error."""
    try:
        return work()
    except (OffloadError, InternalError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'the operating system refused'}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            message += "; run this as the user that the tiers run as, since what they write is for their user only"
    except KeyboardInterrupt:
        return INTERRUPTED
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    return COULD_NOT_RUN


def show(figures: Mapping[str, object], table: Callable[[], RenderableType], path: Path | None) -> None:
    """Print the table, and write the figures as JSON; to :data:`STDOUT` means to print them instead of the table.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    text = json.dumps(figures, indent=2) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        return
    Console().print(table())
    if path is not None:
        with written(path, "figures"):
            path.write_text(text)


@contextmanager
def written(path: Path, what: str) -> Iterator[None]:
    """The block writes a file.

    Raises:
        InvalidArgument: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InvalidArgument(f"{path}: the {what} cannot be written: {error}") from error


def facts() -> Table:
    """A table of two columns, without a heading."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def size_text(nbytes: float) -> str:
    """Bytes for humans."""
    return ByteSize(int(nbytes)).human_readable()


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error; the function given back advances it by one, and takes a word on how it stands."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total)

        def advance(description: str | None = None, by: int = 1) -> None:
            bar.update(task, advance=by, description=description)

        yield advance
