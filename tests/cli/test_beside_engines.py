"""All commands again and again on a root that a busy process uses: it notices nothing but misses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.real_root import run

COMMAND = "from asyncoffload.cli import main; main()"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_operators_at_work_beside_a_replay(tmp_path: Path) -> None:
    root, figures = tmp_path / "kv", tmp_path / "figures.json"
    root.mkdir()
    options = ["--requests", "600", "--block-bytes", "16KiB", "--host-bytes", "2MiB", "--fs-dir", root]
    replay = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "replay", *map(str, options), "--json", str(figures)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    removed = rounds = 0
    while replay.poll() is None or not rounds:
        rounds += 1
        collected = run("gc", root, "--quota", "4MiB", "--json", "-")
        assert collected.exit_code in (0, 1), collected.output  # 1: it was filled faster than it was emptied
        removed += json.loads(collected.stdout)["removed"]["over_quota"]["files"]
        for command in ("verify", "inspect"):
            result = run(command, root, "--json", "-")
            assert result.exit_code == 0, result.output
    output, _ = replay.communicate()
    assert replay.returncode == 0, output
    report = json.loads(figures.read_text())
    assert report["wrong_bytes"] == 0
    assert report["account"]["tiers"]["fs"]["failed"] == 0
    assert report["account"]["tiers"]["fs"]["corrupt"] == 0
    assert removed > 0
