"""What write-through and demotion write, lose and load, on the same made-up traffic."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from asyncoffload.cli.generated import generated_traffic
from asyncoffload.cli.replay import Replay, ReplayOptions
from asyncoffload.cli.traffic import TOKENS_PER_BLOCK, Request
from asyncoffload.config import OffloaderSettings

DESCRIPTION = """\
Plays the same traffic once for each write policy, through the whole stack: real bytes, a file system tier in an empty
directory, and every byte that is loaded is verified. It tells

  written   bytes of the blocks that the tier took, counted by the stack; a block that it had already counts again,
            although its file is left as it is
  on disk   bytes of the files that lie there at the end of the traffic; nothing is flushed before
  lost      blocks that left host memory while the tier had no copy
  shed      blocks that were not stored, since there was no room for them
  loaded    blocks that requests loaded, from host memory and from disk; what they did not load they computed

Traffic is as in `asyncoffload replay`. With --settle each request waits until everything that is due is written, as if
the disk were always faster than the stores."""

KIB, MIB = 1 << 10, 1 << 20
DEVICE_BLOCKS = 2048
POLICIES = [("write_through", "drop"), ("demote", "drop"), ("demote", "refuse")]


@dataclass(frozen=True)
class Figure:
    """One run. Bytes are bytes, all else are blocks, ``seconds`` is the time of the run."""

    write_policy: str
    dirty_victims: str
    host_bytes: int
    written_bytes: int
    on_disk_bytes: int
    evicted: int
    lost: int
    shed: int
    loaded_from_host: int
    loaded_from_disk: int
    asked: int
    wrong_bytes: int
    seconds: float


def play(traffic: Sequence[Request], policy: tuple[str, str], host_bytes: int, arguments: argparse.Namespace) -> Figure:
    """One run in a directory of its own."""
    write_policy, dirty_victims = policy
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="asyncoffload-write-policy-") as root:
        tier: dict[str, object] = {"type": "fs", "root_dir": root}
        if arguments.quota:
            tier["quota"] = arguments.quota * MIB
        settings = OffloaderSettings.parse(
            {
                "host_bytes": host_bytes,
                "tiers": [tier],
                "write_policy": write_policy,
                "dirty_victims": dirty_victims,
                "model": "write-policy",
                "block_size": TOKENS_PER_BLOCK,
                "block_bytes": arguments.block_kib * KIB,
            }
        )
        replay = Replay(
            traffic,
            ReplayOptions(
                settings, arguments.block_kib * KIB, DEVICE_BLOCKS, arguments.concurrency, settle=arguments.settle
            ),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(replay.run())
        on_disk = sum(file.stat().st_size for file in Path(root).rglob("*.bin"))
    assert replay.stats is not None
    stats = replay.stats
    return Figure(
        write_policy,
        dirty_victims,
        host_bytes,
        stats.tier_calls["fs"]["store"].nbytes,
        on_disk,
        stats.primary.evicted,
        stats.primary.lost,
        sum(served.shed for served in replay.served),
        sum(served.hits.get("CPU", 0) for served in replay.served),
        sum(served.hits.get("fs", 0) for served in replay.served),
        sum(served.blocks for served in replay.served),
        sum(served.wrong_bytes for served in replay.served),
        replay.seconds,
    )


def print_table(figures: Sequence[Figure], distinct: int, block_bytes: int) -> None:
    """What was measured, for the eye."""
    print(f"{distinct} different blocks of {block_bytes // KIB} KiB, {distinct * block_bytes / 1e6:.0f} MB")
    print(
        f"{'host':>8} {'policy':22}{'written':>12}{'on disk':>12}{'evicted':>9}{'lost':>7}{'shed':>7}"
        f"{'host':>9}{'disk':>8}{'asked':>9}{'seconds':>9}"
    )
    for one in figures:
        name = f"{one.write_policy}, {one.dirty_victims}"
        print(
            f"{one.host_bytes // MIB:4} MiB {name:22}{one.written_bytes / 1e6:9.1f} MB{one.on_disk_bytes / 1e6:9.1f} MB"
            f"{one.evicted:9}{one.lost:7}{one.shed:7}{one.loaded_from_host:9}{one.loaded_from_disk:8}{one.asked:9}"
            f"{one.seconds:9.1f}"
        )


def main() -> None:
    """Parse the command line, run, and fail if a byte was wrong."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="of the traffic (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block-kib", type=int, default=128, help="a block (default %(default)s KiB)")
    parser.add_argument("--host-mib", type=int, nargs="+", default=[96, 384], help="host memory (default %(default)s)")
    parser.add_argument("--quota", type=int, default=0, metavar="MIB", help="bound of the tier; by default none")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight (default %(default)s)")
    parser.add_argument("--settle", action="store_true", help="let writes end between requests")
    parser.add_argument("--dir", type=Path, default=None, help="where the files lie (default: the temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    traffic = generated_traffic(arguments.requests, seed=arguments.seed)
    distinct = len({block for request in traffic for block in request.blocks})
    sizes = [mib * MIB for mib in arguments.host_mib]
    figures = [play(traffic, policy, size, arguments) for size, policy in itertools.product(sizes, POLICIES)]
    print_table(figures, distinct, arguments.block_kib * KIB)
    if arguments.json:
        report = {"python": sys.version.split()[0], "cpus": os.cpu_count(), "figures": list(map(asdict, figures))}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if any(figure.wrong_bytes for figure in figures):
        raise SystemExit("wrong bytes were loaded")


if __name__ == "__main__":
    main()
