"""What is synced stays; of everything else, each piece may be there or not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.errors import InvalidArgument
from asyncoffload.testing import PowerLoss
from asyncoffload.tiers.fs.format import PAGE
from asyncoffload.tiers.fs.system_calls import EXCHANGE, NO_REPLACE

OLD, NEW = b"o" * 4 * PAGE, b"n" * 4 * PAGE
SEEDS = range(100)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Disk:
    """A root under a power loss, and shorthands."""

    def __init__(self, place: Path, lies: Sequence[str] = ()) -> None:
        self.place, self.root = place, place / "root"
        self.root.mkdir()
        (self.root / "was here").write_bytes(OLD)
        self.power = PowerLoss(self.root, lies=lies)
        self.calls = self.power.calls
        self._shown = 0

    def path(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: bytes, *, flags: int = _CREATE, sync: bool = False) -> None:
        fd = self.calls.open_file(self.path(name), flags, 0o600)
        self.calls.pwritev(fd, [memoryview(content)], 0)
        if sync:
            self.calls.sync_file(fd)
        os.close(fd)

    def sync_names(self, name: str = "") -> None:
        self.calls.sync_directory(self.path(name) if name else str(self.root))

    def after(self, moment: int | None = None) -> list[dict[str, bytes]]:
        """What lies there after losses of power at a moment, by name."""
        moment = self.power.now if moment is None else moment
        return [self._show(moment, seed) for seed in SEEDS]

    def _show(self, moment: int, seed: int) -> dict[str, bytes]:
        self._shown += 1
        root = self.place / f"after {self._shown}"
        self.power.show(root, moment, seed)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def contents(after: Sequence[dict[str, bytes]], name: str) -> set[bytes | None]:
    return {there.get(name) for there in after}


def test_what_was_there_at_the_beginning_stays(disk: Disk) -> None:
    assert all(there == {"was here": OLD} for there in disk.after())


def test_what_is_synced_stays(disk: Disk) -> None:
    disk.write("block", NEW, sync=True)
    disk.sync_names()
    assert contents(disk.after(), "block") == {NEW}


def test_a_name_alone_leads_to_anything(disk: Disk) -> None:
    disk.write("block", NEW)
    disk.sync_names()
    found = contents(disk.after(), "block")
    assert None not in found
    assert {b"", NEW} <= found
    assert any(b"n" in content and b"\0" in content and len(content) == len(NEW) for content in found if content)
    assert any(0 < len(content) < len(NEW) for content in found if content)
    assert any(len(content.rstrip(b"\0")) % PAGE for content in found if content), "pages are torn, too"


def test_bytes_alone_have_a_name_or_not(disk: Disk) -> None:
    disk.write("block", NEW, sync=True)
    assert contents(disk.after(), "block") == {None, NEW}


def test_syncing_everything_syncs_bytes_and_names(disk: Disk) -> None:
    disk.write("block", NEW)
    disk.calls.sync_whole(disk.path(""))
    assert contents(disk.after(), "block") == {NEW}


def test_a_sync_covers_what_ended_before_it_and_counts_when_it_has_ended(disk: Disk) -> None:
    disk.write("block", NEW, sync=True)
    before = disk.power.now
    disk.sync_names()
    disk.write("late", NEW, sync=True)
    assert contents(disk.after(before + 1), "block") == {None, NEW}
    assert contents(disk.after(before + 2), "block") == {NEW}
    assert contents(disk.after(), "late") == {None, NEW}


def test_nothing_of_what_came_later_is_there(disk: Disk) -> None:
    before = disk.power.now
    disk.write("block", NEW, sync=True)
    disk.calls.unlink(disk.path("was here"))
    disk.sync_names()
    assert all(there == {"was here": OLD} for there in disk.after(before))


def test_bytes_that_replace_others_may_leave_some_of_both(disk: Disk) -> None:
    disk.write("was here", NEW, flags=os.O_WRONLY)
    found = contents(disk.after(), "was here")
    assert {OLD, NEW} <= found
    assert any(set(content) == {*b"on"} for content in found if content)
    assert {len(content) for content in found if content is not None} == {len(OLD)}


def test_a_file_that_is_renamed_may_have_both_names_or_none(disk: Disk) -> None:
    disk.calls.rename(disk.path("was here"), disk.path("there"), NO_REPLACE)
    names = {frozenset(there) for there in disk.after()}
    assert names == {frozenset(), frozenset({"was here"}), frozenset({"there"}), frozenset({"was here", "there"})}


def test_a_file_with_two_names_is_one_file(disk: Disk) -> None:
    disk.calls.replace(disk.path("was here"), disk.path("there"))
    disk.write("there", NEW, flags=os.O_WRONLY)
    disk.after()
    both = [root for root in disk.place.glob("after *") if len(list(root.iterdir())) == 2]
    assert both
    assert all((root / "there").stat().st_nlink == 2 for root in both)


def test_names_that_are_exchanged(disk: Disk) -> None:
    disk.write("block", NEW, sync=True)
    disk.sync_names()
    disk.calls.rename(disk.path("block"), disk.path("was here"), EXCHANGE)
    assert contents(disk.after(), "was here") == {OLD, NEW}
    disk.sync_names()
    assert all(there == {"was here": NEW, "block": OLD} for there in disk.after())


def test_a_removal_that_is_not_synced_may_come_undone(disk: Disk) -> None:
    disk.calls.unlink(disk.path("was here"))
    assert contents(disk.after(), "was here") == {None, OLD}
    disk.sync_names()
    assert contents(disk.after(), "was here") == {None}


def test_a_directory_is_lost_with_all_that_is_in_it(disk: Disk) -> None:
    disk.calls.mkdir(disk.path("new"), 0o700)
    disk.write("new/block", NEW, sync=True)
    disk.sync_names("new")
    assert contents(disk.after(), "new/block") == {None, NEW}
    disk.sync_names()
    assert contents(disk.after(), "new/block") == {NEW}


def test_a_directory_that_somebody_else_made_is_as_new_as_it_is_first_seen(disk: Disk) -> None:
    (disk.root / "new").mkdir()
    disk.write("new/block", NEW, sync=True)
    disk.sync_names("new")
    assert contents(disk.after(), "new/block") == {None, NEW}
    disk.sync_names()
    assert contents(disk.after(), "new/block") == {NEW}


@pytest.mark.parametrize("forgotten", ["sync_file", "sync_directory"])
def test_lies_are_told(tmp_path: Path, forgotten: str) -> None:
    disk = Disk(tmp_path, lies=[forgotten])
    disk.write("block", NEW, sync=True)
    disk.sync_names()
    assert len(contents(disk.after(), "block")) > 1


@pytest.mark.parametrize("lies", [["sync"], "sync_file"])
def test_lies_about_nothing_are_refused(tmp_path: Path, lies: Sequence[str]) -> None:
    with pytest.raises(InvalidArgument, match="of sync_file, sync_directory, sync_whole"):
        PowerLoss(tmp_path, lies=lies)


def test_the_same_seed_shows_the_same(disk: Disk) -> None:
    disk.write("block", NEW)
    disk.calls.replace(disk.path("was here"), disk.path("there"))
    assert disk.after() == disk.after()


def test_whether_a_path_has_had_a_file_since(disk: Disk) -> None:
    path, had = disk.path("block"), disk.power.had_a_file
    before = disk.power.now
    disk.write("block", OLD)
    stored = disk.power.now
    disk.write("temporary", NEW)
    disk.calls.rename(disk.path("temporary"), path, EXCHANGE)
    replaced = disk.power.now
    disk.calls.unlink(path)
    assert had(path, stored, replaced)
    assert not had(path, before, replaced)
    assert not had(path, stored, replaced + 1)
    assert not had(disk.path("never"), stored, replaced)
