"""When a whole file system is synced."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncoffload.tiers.fs.whole_sync import may_sync_whole, unwritten_bytes


def test_what_nobody_has_written_yet_is_counted(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemFree:        1 kB\nDirty:          184 kB\nWriteback:        16 kB\nWritebackTmp:   9 kB\n")
    assert unwritten_bytes(str(table)) == 200 << 10


@pytest.mark.parametrize("text", ["", "Dirty: much\n", None])
def test_a_system_that_does_not_tell_may_have_left_anything(tmp_path: Path, text: str | None) -> None:
    table = tmp_path / "meminfo"
    if text is not None:
        table.write_text(text)
    assert unwritten_bytes(str(table)) > 1 << 60


def test_a_file_system_without_a_journal_is_synced_file_by_file() -> None:
    assert not may_sync_whole("/proc")


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        may_sync_whole(str(tmp_path / "gone"))
