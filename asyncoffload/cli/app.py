"""The commands and their options. What a command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from asyncoffload.cli import operating
from asyncoffload.cli.arguments import directory as _directory
from asyncoffload.cli.arguments import output as _output
from asyncoffload.cli.arguments import picture as _picture
from asyncoffload.cli.arguments import size as _size
from asyncoffload.cli.arguments import threads as _threads
from asyncoffload.cli.operating import DirectIO

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(bench, name="bench", help="Measure one part alone, against the fastest there is.")


_TRAFFIC, _MEMORY, _DISK, _RUN = "Traffic", "Memory", "Disk", "The run and its results"


class LoopChoice(StrEnum):
    """The event loops that a replay can run on."""

    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


class BenchedDevice(StrEnum):
    """What ``bench device`` measures on."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class Durability(StrEnum):
    """Whether the file system tier makes blocks durable."""

    NONE = "none"
    FSYNC = "fsync"


class WritePolicyChoice(StrEnum):
    """When blocks are written to the disk tier."""

    WRITE_THROUGH = "write_through"
    DEMOTE = "demote"


class DirtyVictimsChoice(StrEnum):
    """What happens where only unwritten blocks could make room."""

    DROP = "drop"
    REFUSE = "refuse"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncoffload {version('asyncoffload')}")
        raise typer.Exit


@app.callback()
def asyncoffload(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Moves the KV-cache blocks of language models between a device, host memory and disk, without ever blocking an
    event loop. Start with `asyncoffload replay`."""


@app.command()
def replay(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="Traffic to play: JSON lines, plain or gzip, with timestamp (ms), input_length (tokens), hash_ids "
            "(one per block of 512 tokens) and optionally output_length. Without it, traffic is made up.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_TRAFFIC,
            help="Play so many requests.",
            show_default="1200 made up, or the whole trace",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=_TRAFFIC, help="Another seed makes up other traffic.")] = 0,
    block_bytes: Annotated[
        int,
        typer.Option(parser=_size, metavar="SIZE", rich_help_panel=_MEMORY, help="Bytes of one block of 512 tokens."),
    ] = "128KiB",  # type: ignore[assignment]
    device_blocks: Annotated[
        int, typer.Option(min=1, rich_help_panel=_MEMORY, help="Blocks of the device, lent to requests.")
    ] = 2048,
    host_bytes: Annotated[
        int,
        typer.Option(parser=_size, metavar="SIZE", rich_help_panel=_MEMORY, help="Host memory for the primary tier."),
    ] = "96MiB",  # type: ignore[assignment]
    policy: Annotated[
        str, typer.Option(rich_help_panel=_MEMORY, help="Which block leaves the primary first: lru or arc.")
    ] = "lru",
    write_policy: Annotated[
        WritePolicyChoice,
        typer.Option(rich_help_panel=_DISK, help="Write blocks when they are stored, or when they are about to leave."),
    ] = WritePolicyChoice.WRITE_THROUGH,
    dirty_victims: Annotated[
        DirtyVictimsChoice,
        typer.Option(
            rich_help_panel=_DISK, help="Where only unwritten blocks could make room: drop them, or refuse stores."
        ),
    ] = DirtyVictimsChoice.DROP,
    fs_dir: Annotated[
        Path | None,
        typer.Option(
            parser=_directory,
            metavar="DIRECTORY",
            rich_help_panel=_DISK,
            help="Keep the blocks of the disk tier here, and find them again next time.",
            show_default="a temporary directory, removed at the end",
        ),
    ] = None,
    fs_threads: Annotated[
        str,
        typer.Option(
            callback=_threads,
            metavar="N|auto",
            rich_help_panel=_DISK,
            help="Threads that read files, and as many that write.",
        ),
    ] = "auto",
    direct_io: Annotated[
        DirectIO, typer.Option(rich_help_panel=_DISK, help="Pass by the page cache (O_DIRECT).")
    ] = DirectIO.AUTO,
    durability: Annotated[
        Durability, typer.Option(rich_help_panel=_DISK, help="Whether a stored block survives a loss of power.")
    ] = Durability.NONE,
    concurrency: Annotated[int, typer.Option(min=1, rich_help_panel=_TRAFFIC, help="Requests in flight.")] = 16,
    settle: Annotated[
        bool,
        typer.Option(
            "--settle",
            rich_help_panel=_TRAFFIC,
            help="Let all writes to disk end before the next request starts. With a concurrency of 1, hits per tier "
            "are then those of a textbook LRU, block for block.",
        ),
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            rich_help_panel=_TRAFFIC,
            help="Play so many seconds of the trace in one second.",
            show_default="as fast as possible",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            rich_help_panel=_TRAFFIC,
            help="Seconds that a request waits for its blocks before it computes them.",
            show_default="no limit",
        ),
    ] = None,
    loop: Annotated[
        LoopChoice, typer.Option(rich_help_panel=_RUN, help="The event loop to run on.")
    ] = LoopChoice.UVLOOP,
    json: Annotated[
        Path | None,
        typer.Option(callback=_output, dir_okay=False, allow_dash=True, rich_help_panel=_RUN, help=operating.JSON_HELP),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=_picture,
            dir_okay=False,
            rich_help_panel=_RUN,
            help="Draw hits over time and load latency into this PNG file.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            rich_help_panel=_RUN,
            help="Serve Prometheus metrics of the run at this port of 127.0.0.1; 0 is any that is free.",
            show_default="not served",
        ),
    ] = None,
) -> None:
    """Play LLM traffic through the whole stack, with real bytes, and verify every byte that comes back.

    Each request looks up its prefix, loads what some tier has into device blocks, verifies it, "computes" the rest and
    stores it; many requests are in flight as coroutines. The device is made of host memory, so any machine will do.
    Ctrl-C ends the run with the figures so far.

    - `asyncoffload replay`: half a minute of made-up traffic

    - `asyncoffload replay trace.jsonl.gz --plot hits.png`: a trace of yours, and a picture of it

    - `asyncoffload replay --host-bytes 64MiB --policy arc`: a smaller primary, another policy

    - `asyncoffload replay --speed 1 --metrics-port 9400`: for an hour, with Prometheus watching

    The exit status is 0 when every byte was right, 1 when one was wrong, 2 when the run could not start or broke off,
    130 when it was interrupted.
    """
    from asyncoffload.cli.replay_command import ReplayCommand

    command = ReplayCommand(
        trace=trace,
        requests=requests,
        seed=seed,
        block_bytes=block_bytes,
        device_blocks=device_blocks,
        host_bytes=host_bytes,
        policy=policy,
        write_policy=write_policy.value,
        dirty_victims=dirty_victims.value,
        fs_dir=fs_dir,
        fs_threads=fs_threads,
        metrics_port=metrics_port,
        direct_io=direct_io.value,
        durability=durability.value,
        concurrency=concurrency,
        settle=settle,
        speed=speed,
        deadline=deadline,
        loop=loop.value,
        json=json,
        plot=plot,
    )
    raise typer.Exit(command.run())


@bench.command("device")
def bench_device(
    on: Annotated[
        BenchedDevice, typer.Option("--device", help="Measure on this device; auto is CUDA where there is one.")
    ] = BenchedDevice.AUTO,
    copy_threads: Annotated[int, typer.Option(min=1, help="Threads that copy, where the device is the CPU.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and rounds: about a quarter of the time.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure only this, more than once for more: speed, both, loop, latency, submission, compute, "
            "threads, layers, pinning, engines.",
            show_default="all",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            callback=_output,
            dir_okay=False,
            allow_dash=True,
            help=f"{operating.JSON_HELP} A plain file is written anew after each measurement.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=_picture, dir_okay=False, help="Draw speeds, aims and engines by page size into this PNG file."
        ),
    ] = None,
) -> None:
    """Measure the transfers between a device and host memory, against raw copies of the same bytes.

    Two ways of the same run in turns, with random data, into destinations that were overwritten before; a figure is
    the median of the rounds, with its quartiles, its aim and whether it is met. Every byte is compared afterwards;
    1 GB is 1e9 bytes, and each byte copied counts once. A measurement that fails says so in its row, and the others
    still run. Ctrl-C ends with the figures so far.

    - `asyncoffload bench device`: everything; a few minutes

    - `asyncoffload bench device --quick --json figures.json --plot figures.png`

    - `asyncoffload bench device --only engines`: every way of copying, and which of them was chosen for what

    The exit status is 0 when everything could be measured, whether aims are met or not; 1 when something failed, wrong
    bytes above all; 2 when the run could not start; 130 when it was interrupted.
    """
    from asyncoffload.cli.bench_device_command import BenchDeviceCommand

    command = BenchDeviceCommand(
        device=on.value, copy_threads=copy_threads, quick=quick, only=only or (), json=json, plot=plot
    )
    raise typer.Exit(command.run())


operating.add_to(app, bench)
