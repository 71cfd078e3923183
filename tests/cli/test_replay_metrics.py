"""A replay that serves its metrics while it runs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import URLError

import pytest
from typer.testing import CliRunner, Result

from asyncoffload import Offloader
from asyncoffload.cli.app import app
from asyncoffload.cli.generated import generated_traffic
from asyncoffload.cli.replay import Replay, ReplayOptions
from asyncoffload.config import OffloaderSettings
from asyncoffload.metrics import serve_metrics
from tests.metrics.scraping import Scrape

SMALL = ("--requests", "20", "--block-bytes", "4KiB", "--host-bytes", "1MiB")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["replay", *SMALL, *arguments], env={"COLUMNS": "200"})


def test_it_says_where_and_plays_on() -> None:
    run = _run("--metrics-port", "0")
    assert run.exit_code == 0, run.output
    (url,) = re.findall(r"metrics at (\S+)", run.output)
    assert "20 of 20" in run.output
    with pytest.raises(URLError):
        Scrape.now(url)


def test_a_port_that_cannot_be_had_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = _run("--metrics-port", port)
    assert run.exit_code == 2
    assert f"metrics cannot be served on 127.0.0.1, port {port}" in run.output
    assert _run("--metrics-port", "70000").exit_code == 2


async def test_what_is_scraped_at_the_end_is_what_the_run_reports(tmp_path: Path) -> None:
    settings = OffloaderSettings.parse({"host_bytes": "1MiB", "tiers": [{"type": "fs", "root_dir": tmp_path}]})
    replay = Replay(generated_traffic(40), ReplayOptions(settings, block_bytes=4096, device_blocks=512))
    scrapes: list[Scrape] = []

    @asynccontextmanager
    async def observing(offloader: Offloader) -> AsyncIterator[None]:
        async with serve_metrics(offloader, 0) as server:
            yield
            scrapes.append(await Scrape.of(server.url))

    await replay.run(observing=observing)
    report, (seen,) = replay.report({}), scrapes
    for tier in ("CPU", "fs"):
        assert seen("load_hit_blocks_total", tier=tier) == report.hits[tier]
    assert seen("tier_bytes_total", tier="CPU", direction="load") == report.flows["CPU -> device"].nbytes
    assert seen("tier_bytes_total", tier="CPU", direction="store") == report.flows["device -> CPU"].nbytes
    assert seen("tier_bytes_total", tier="fs", direction="store") == report.flows["CPU -> fs"].nbytes
    assert seen("tier_evicted_blocks_total", tier="CPU") == report.account.evicted
    assert seen("call_duration_seconds_count", call="load") == sum(served.blocks > 0 for served in replay.served)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_is_scraped_while_it_plays(tmp_path: Path) -> None:
    command = "from asyncoffload.cli import main; main()"
    figures = tmp_path / "figures.json"
    arguments = ["replay", "--requests", "600", "--metrics-port", "0", "--json", str(figures)]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
    ) as run:
        assert run.stderr is not None
        url = next(found[1] for line in run.stderr if (found := re.search(r"metrics at (\S+)", line)))
        loads = [0.0]
        try:
            while loads[-1] < 100:
                loads.append(Scrape.now(url)("calls_total", call="load", result="ok"))
        except OSError:  # it was faster than us
            pass
        run.stderr.read()
    assert run.returncode == 0
    assert loads == sorted(loads)
    assert loads[-1] > 0
    assert json.loads(figures.read_text())["served"] == 600
