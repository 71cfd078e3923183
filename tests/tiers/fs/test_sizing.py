"""How many I/O threads ``"auto"`` means."""

from __future__ import annotations

from asyncoffload.tiers.fs.sizing import auto_io_threads


def test_more_cores_more_threads_within_bounds() -> None:
    counts = [auto_io_threads(1 << 20, cores) for cores in (1, 2, 4, 8, 64)]
    assert counts == sorted(counts)
    assert counts[0] >= 2
    assert counts[-1] == 16


def test_small_blocks_need_fewer() -> None:
    assert auto_io_threads(64 << 10, 4) < auto_io_threads(1 << 20, 4)


def test_asks_the_operating_system() -> None:
    assert 2 <= auto_io_threads(1 << 20) <= 16
