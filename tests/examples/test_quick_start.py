"""The quick start runs and says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick_start import main


async def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await main(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "stored 8 blocks; their device blocks may be overwritten now",
        "found 8 blocks, loaded 8, by tier: {'fs': 8}",
        "every byte came back",
    ]
