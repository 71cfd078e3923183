"""What the commands have in common: how they end, show what they found, and how far they are."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ByteSize
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asyncoffload.cli.arguments import STDOUT
from asyncoffload.errors import InternalError, InvalidArgument, OffloadError

ALL_WELL, SOMETHING_WRONG, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130
NO_LAYOUTS = "none: no tier has used this directory"


def ended(work: Callable[[], int]) -> int:
    """The exit status of a command: what ``work`` says, or that it could not run, with a word on standard error."""
    try:
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as failure:  # whatever it is, it says nothing about what was looked at
        for message in dict.fromkeys(map(_message, _leaves(failure))):
            Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
        return COULD_NOT_RUN


def _leaves(failure: Exception) -> Iterator[Exception]:
    if isinstance(failure, ExceptionGroup):
        for each in failure.exceptions:
            yield from _leaves(each)
    else:
        yield failure


def _message(failure: Exception) -> str:
    match failure:
        case OffloadError() | InternalError() | ImportError():
            return str(failure)
        case OSError():
            message = f"{failure.filename or 'the operating system refused'}: {failure.strerror or failure}"
            if isinstance(failure, PermissionError):
                message += "; run this as the user that the tiers run as, since what they write is for their user only"
            return message
        case MemoryError():
            return "there is not enough memory: choose smaller sizes, or run this on a larger machine"
        case _:
            traceback.print_exception(failure)
            return f"{type(failure).__name__} is a defect of asyncoffload: please report it, with the lines above"


def show(figures: Mapping[str, object], table: Callable[[], RenderableType], path: Path | None) -> None:
    """Print the table, and write the figures as JSON; to :data:`STDOUT` means to print them instead of the table.

    Raises:
        InvalidArgument: the file cannot be written, or standard output.
        SystemExit: whoever read standard output has left; the status is that of any tool in a pipeline.
    """
    text = json.dumps(figures, indent=2) + "\n"
    try:
        with _stdout():
            if path == STDOUT:
                print(text, end="")
            else:
                Console().print(table())
    finally:
        if path is not None and path != STDOUT:
            with written(path, "figures"):
                path.write_text(text)


@contextmanager
def _stdout() -> Iterator[None]:
    """The block prints."""
    try:
        yield
        print(end="", flush=True)
    except (OSError, SystemExit) as failure:  # rich ends the process itself where it finds that nobody reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered
        if isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError):
            raise InvalidArgument(f"standard output cannot be written: {failure.strerror or failure}") from failure
        raise SystemExit(128 + signal.SIGPIPE) from None


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
    """A bar on standard error, if that is a terminal; the function given back advances it, and takes a word on it."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)

        def advance(description: str | None = None, by: int = 1) -> None:
            bar.update(task, advance=by, description=description)

        yield advance
