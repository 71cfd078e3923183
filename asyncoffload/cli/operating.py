"""The operators' commands and their options. What a command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from asyncoffload.cli.arguments import days, existing_directory, output, picture, size, sizes, threads
from asyncoffload.cli.arguments import root as root_directory


class DirectIO(StrEnum):
    """Whether the file system tier passes by the page cache."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


JSON_HELP = "Write all figures to this file; `-` prints them instead of the table."

_Root = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        parser=root_directory,
        help="The root_dir of a file system tier.",
        show_default=False,
    ),
]
_JSON = Annotated[
    Path | None,
    typer.Option(
        callback=output,
        dir_okay=False,
        allow_dash=True,
        help=JSON_HELP,
    ),
]


def doctor(
    root: _Root,
    measure: Annotated[bool, typer.Option(help="Measure how fast the disk is.")] = True,
    nbytes: Annotated[
        int,
        typer.Option(
            "--bytes",
            parser=size,
            metavar="SIZE",
            help="Bytes that each measurement writes and reads, at most; 4MiB or more.",
        ),
    ] = "256MiB",  # type: ignore[assignment]
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long each measurement writes, and reads, at most.")
    ] = 1.5,
    json: _JSON = None,
) -> None:
    """Look at a directory, the disk below it and the machine around it: will a tier work there, how fast, what will it
    fall back to and why, and which options to choose.

    What the tier builds upon is tried out rather than looked up: O_DIRECT and its alignment, renaming, locks, shared
    memory maps, the resolution of times. The speed is that of bare threads that write and read whole files. Everything
    is done in a directory of its own below DIR, which is removed again; about half a minute.

    - `asyncoffload doctor /var/cache/kv`

    - `asyncoffload doctor /var/cache/kv --no-measure --json -`: at once, for a script

    The exit status is 0 when a tier can work there, 1 when it cannot, 2 when it could not be found out, 130 when it was
    interrupted.
    """
    from asyncoffload.cli.doctor_command import DoctorCommand

    raise typer.Exit(DoctorCommand(root=root, measure=measure, nbytes=nbytes, seconds=seconds, json=json).run())


def inspect(
    root: _Root,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A block: the hexadecimal digits of its key or block hash, or the first four or more of them.",
            show_default="the whole root",
        ),
    ] = None,
    json: _JSON = None,
) -> None:
    """Say what lies in a root and who uses it now; or, given a block, where it is and whether it would be served.

    For a root: each layout with its configuration in clear, its blocks and bytes, how long ago they were used, files in
    quarantine, leftovers of processes that died. For a block: its files, what their headers say, and whether they pass
    the check of a load. Nothing is changed, and engines may go on meanwhile.

    - `asyncoffload inspect /var/cache/kv`

    - `asyncoffload inspect /var/cache/kv 9f86d081884c7d65`

    The exit status is 0; 1 when the block would not be served; 2 when it could not run; 130 when it was interrupted.
    """
    if key is None:
        from asyncoffload.cli.inspect_command import InspectCommand

        raise typer.Exit(InspectCommand(root=root, json=json).run())
    from asyncoffload.cli.inspect_block_command import InspectBlockCommand

    raise typer.Exit(InspectBlockCommand(root=root, key=key, json=json).run())


def verify(
    root: _Root,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Set bad blocks aside under another name, as a tier does at a load.")
    ] = False,
    rate: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Read no more than so many bytes per second, to leave the disk to others.",
            show_default="as fast as the disk goes",
        ),
    ] = None,
    threads: Annotated[
        str, typer.Option(callback=threads, metavar="N|auto", help="Threads that read and check.")
    ] = "auto",
    json: _JSON = None,
) -> None:
    """Read every block below a root and check it as a load would: length, header, and the checksum of every byte.

    Nothing is changed without `--quarantine`. It runs safely beside engines that use the root: blocks that they remove
    or replace meanwhile are no trouble, and the page cache is passed by where the file system allows it. Ctrl-C ends
    it with what was seen so far.

    - `asyncoffload verify /var/cache/kv`

    - `asyncoffload verify /var/cache/kv --rate 200MiB --json bad.json`: gently, with a list of what is bad

    The exit status is 0 when every block is good, 1 when a block or a config.json is bad, 2 when it could not run, 130
    when it was interrupted.
    """
    from asyncoffload.cli.verify_command import VerifyCommand

    command = VerifyCommand(root=root, quarantine=quarantine, rate=rate, threads=threads, json=json)
    raise typer.Exit(command.run())


def gc(
    root: _Root,
    quota: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Remove the blocks that were used longest ago until the files take no more than this.",
            show_default="remove no blocks",
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            parser=days,
            metavar="DAYS",
            help="Remove blocks that were not used for so long.",
            show_default="no limit",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: _JSON = None,
) -> None:
    """Make room below a root: leftovers of processes that died, files in quarantine, and what is too old or too much.

    To get down to a quota, blocks of layouts that no process uses now go first, those used longest ago before others;
    then blocks of the other layouts. It may run beside engines that use the root: what they are writing is left alone,
    a block that is being read stays with its reader, one that is used meanwhile is passed over, and the account that
    they keep of the root stays exact. Files that no tier made are never touched.

    - `asyncoffload gc /var/cache/kv`: rubbish only

    - `asyncoffload gc /var/cache/kv --quota 200GiB --dry-run`: see first

    - `asyncoffload gc /var/cache/kv --older-than 14`: a job for cron

    The exit status is 0; 1 when the files still take more than the quota; 2 when it could not run; 130 when it was
    interrupted, with what was removed until then.
    """
    from asyncoffload.cli.gc_command import GCCommand

    raise typer.Exit(GCCommand(root=root, quota=quota, older_than=older_than, dry_run=dry_run, json=json).run())


def bench_fs(
    root: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            parser=existing_directory,
            help="A directory on the disk to measure; the benchmark works in a directory of its own below it.",
            show_default=False,
        ),
    ],
    sizes: Annotated[
        str, typer.Option(callback=sizes, metavar="SIZE,SIZE,…", help="Bytes of a block; each size is measured.")
    ] = "64KiB,256KiB,1MiB,4MiB",
    nbytes: Annotated[
        int,
        typer.Option(
            "--bytes",
            parser=size,
            metavar="SIZE",
            help="Bytes that each round moves in each direction; held in memory.",
        ),
    ] = "256MiB",  # type: ignore[assignment]
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for each size; the tier and bare threads take turns.")] = 3,
    io_threads: Annotated[
        str,
        typer.Option(callback=threads, metavar="N|auto", help="Threads of the tier that read, and as many that write."),
    ] = "auto",
    direct_io: Annotated[DirectIO, typer.Option(help="Pass by the page cache (O_DIRECT).")] = DirectIO.AUTO,
    json: _JSON = None,
    plot: Annotated[
        Path | None,
        typer.Option(callback=picture, dir_okay=False, help="Draw speed and latency by block size into this PNG file."),
    ] = None,
) -> None:
    """Measure the file system tier on a disk, beside the fastest there is: bare threads that move the same files.

    For each block size, many jobs of 16 blocks at once give the speed, and jobs of one block, one after the other, the
    latency. The tier computes and verifies checksums; bare threads do not, and use the number of threads that was best.
    A figure is the median of the rounds. Every byte that comes back is compared. Ctrl-C ends it with the sizes that
    are complete.

    - `asyncoffload bench fs /var/cache/kv`

    - `asyncoffload bench fs /var/cache/kv --sizes 1MiB,16MiB --bytes 1GiB --plot disk.png`

    The exit status is 0 when every byte was right, 1 when a block was wrong, 2 when it could not run, 130 when it was
    interrupted.
    """
    from asyncoffload.cli.bench_fs_command import BenchFSCommand

    command = BenchFSCommand(
        root=root,
        sizes=sizes,  # type: ignore[arg-type]
        nbytes=nbytes,
        rounds=rounds,
        io_threads=io_threads,
        direct_io=direct_io.value,
        json=json,
        plot=plot,
    )
    raise typer.Exit(command.run())


def add_to(app: typer.Typer, bench: typer.Typer) -> None:
    """Make the commands known."""
    app.command()(doctor)
    app.command()(inspect)
    app.command()(verify)
    app.command()(gc)
    bench.command("fs")(bench_fs)
