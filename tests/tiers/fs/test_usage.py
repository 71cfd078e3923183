"""The account of a root, step by step."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs import usage as usage_module
from asyncoffload.tiers.fs.account_file import BUCKETS, UsageBusyError, bucket_of
from asyncoffload.tiers.fs.counting import Census
from asyncoffload.tiers.fs.locks import ByteLocks
from asyncoffload.tiers.fs.quota import Allowance, Bounds
from asyncoffload.tiers.fs.renaming import put_in_place
from asyncoffload.tiers.fs.system_calls import THE_SYSTEM, SystemCalls
from asyncoffload.tiers.fs.usage import Usage

BLOCK, QUOTA = 1000, 10_000


def open_usage(root: Path, **options: Any) -> Usage:
    return Usage(str(root), is_empty=lambda: True, **options)


def allowance_of(
    usage: Usage, quota: int | None = QUOTA, min_free: int | None = None, free: int = 1 << 40
) -> Allowance:
    return Allowance(usage, Bounds(quota, min_free, BLOCK), lambda: free)


def make_file(root: Path, bucket: int, name: str, nbytes: int) -> Path:
    directory = root / ("0" * 32 + "_r0") / f"{bucket:02x}_g0"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(bytes(nbytes))
    return directory / name


def count_all(root: Path, usage: Usage) -> None:
    census = Census(str(root), usage)
    for bucket in range(BUCKETS):
        census.count(bucket)
    census.finish()


def test_what_all_have_added_is_used(tmp_path: Path) -> None:
    first, second = open_usage(tmp_path), open_usage(tmp_path)
    for usage, nbytes in ((first, 5), (second, 7), (first, -2)):
        usage.begin(3)
        usage.end(3, added=nbytes)
    assert first.used == second.used == 10
    assert first.users == 2
    first.leave()
    first.leave()
    assert second.used == first.used == 10
    assert second.users == 1
    second.leave()
    third = open_usage(tmp_path)
    assert (third.used, third.users, third.is_known) == (10, 1, True)
    assert len(third.in_doubt) == BUCKETS, "who comes alone counts again"
    third.leave()


def test_a_death_puts_its_open_brackets_in_doubt_and_nothing_else(tmp_path: Path) -> None:
    dead, living = open_usage(tmp_path, quota=QUOTA), open_usage(tmp_path, quota=QUOTA)
    allowance = allowance_of(dead)
    assert allowance.take(7, BLOCK)
    assert allowance.take(8, BLOCK)
    make_file(tmp_path, 8, "a.bin", BLOCK)
    allowance.put(8, BLOCK)
    make_file(tmp_path, 7, "b.bin", BLOCK)  # it has its name, but is not entered
    reserved = dead.reserved
    dead.abandon()
    assert living.fold_dead() == 1
    assert living.in_doubt == [7]
    assert living.used == BLOCK
    assert living.reserved == reserved, "what the dead had reserved may have been written"
    count_all(tmp_path, living)
    assert (living.used, living.reserved, living.in_doubt) == (2 * BLOCK, 0, [])
    living.leave()


def test_who_dies_over_the_burial_of_another_leaves_everything_in_doubt(tmp_path: Path) -> None:
    writes = 3

    class Mortal(Usage):
        alive = True

        def _put(self, index: int, value: int) -> None:
            nonlocal writes
            if not self.alive:
                if not writes:
                    raise KeyboardInterrupt
                writes -= 1
            super()._put(index, value)

    dead, gravedigger = open_usage(tmp_path), Mortal(str(tmp_path), is_empty=lambda: True)
    for bucket in range(4):
        make_file(tmp_path, bucket, "a.bin", BLOCK)
        dead.begin(bucket)
        dead.end(bucket, added=BLOCK)
    dead.abandon()
    gravedigger.alive = False
    with pytest.raises(KeyboardInterrupt):
        gravedigger.fold_dead()
    gravedigger.abandon()
    living = open_usage(tmp_path)
    assert len(living.in_doubt) == BUCKETS
    count_all(tmp_path, living)
    assert living.used == 4 * BLOCK
    living.leave()


def test_a_count_is_void_when_files_change_meanwhile(tmp_path: Path) -> None:
    usage, other = open_usage(tmp_path), open_usage(tmp_path)
    before = usage.moment(1)
    assert before is not None
    other.begin(1)
    assert usage.moment(1) is None
    assert usage.moment(2) is not None
    assert not usage.counted(1, before, 99)
    other.end(1, added=5)
    assert not usage.counted(1, before, 99)
    again = usage.moment(1)
    assert again is not None
    other.begin(2)
    other.end(2, added=1)
    assert usage.counted(1, again, 105)
    assert usage.used == 106
    usage.doubt(1)
    assert usage.in_doubt == [1]
    assert not usage.counted(1, again, 105)
    third = usage.moment(1)
    assert third is not None
    other.leave()
    assert not usage.counted(1, third, 105), "a record has moved meanwhile"
    usage.leave()


def test_space_is_granted_up_to_the_quota_and_not_further(tmp_path: Path) -> None:
    usages = [open_usage(tmp_path, quota=QUOTA) for _ in range(3)]
    allowances = [allowance_of(usage) for usage in usages]
    taken, full = 0, 0
    while full < 3:
        full = 0
        for allowance in allowances:
            if allowance.take(taken % 5, BLOCK):
                taken += 1
            else:
                full += 1
                allowance.refuse(BLOCK)
        assert usages[0].reserved <= QUOTA
    assert taken >= 8
    assert all(allowance.shed_by_quota and not allowance.shed_by_space for allowance in allowances)
    assert all(allowance.waits for allowance in allowances)
    assert usages[0].wanted == 3 * BLOCK
    assert allowances[0].lacking() >= 3 * BLOCK - (QUOTA - usages[0].reserved)
    for usage in usages:
        usage.leave()


def test_the_tightest_bounds_of_the_living_hold(tmp_path: Path) -> None:
    first = open_usage(tmp_path, quota=500, min_free=10)
    second = open_usage(tmp_path, quota=300)
    third = open_usage(tmp_path, min_free=20)
    assert (first.quota, first.min_free) == (300, 20)
    second.leave()
    third.abandon()
    first.fold_dead()
    assert (first.quota, first.min_free) == (500, 10)
    first.leave()


def test_a_holder_of_the_lock_that_was_stopped_stops_nobody(tmp_path: Path) -> None:
    holder, usage, now = open_usage(tmp_path, quota=QUOTA), open_usage(tmp_path, quota=QUOTA), 0.0
    allowance = Allowance(usage, Bounds(QUOTA, None, BLOCK), lambda: 1 << 40, clock=lambda: now)
    with holder.locked():
        with pytest.raises(UsageBusyError, match="held the account of the root for long: see whether a process"):
            usage.fold_dead()
        assert not allowance.take(0, BLOCK)
    assert not allowance.take(0, BLOCK), "not every store waits for the lock in vain"
    now = 1.0
    assert allowance.take(0, BLOCK)
    allowance.give_back(0, BLOCK)
    for each in (holder, usage):
        each.leave()


def test_one_at_a_time_keeps_house(tmp_path: Path) -> None:
    first, second = open_usage(tmp_path), open_usage(tmp_path)
    assert second.keeper is None
    assert first.take_housekeeping()
    assert first.take_housekeeping()
    assert not second.take_housekeeping()
    assert [usage.keeper for usage in (first, second)] == [None, os.getpid()]
    first.abandon()
    assert second.take_housekeeping()
    assert not first.take_housekeeping()
    second.leave()


def test_who_has_no_bounds_keeps_those_of_the_root(tmp_path: Path) -> None:
    free, bounded = open_usage(tmp_path), open_usage(tmp_path, quota=QUOTA)
    allowance = allowance_of(free, quota=None)
    assert allowance.is_bounded
    taken = 0
    while allowance.take(taken % 5, BLOCK):
        allowance.put(taken % 5, BLOCK)
        taken += 1
    assert taken == QUOTA // BLOCK
    assert allowance.refuse(BLOCK) == "quota"
    assert (free.used, free.reserved) == (QUOTA, 0)
    for usage in (bounded, free):
        usage.leave()


def test_without_bounds_nothing_is_locked_and_all_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, other = open_usage(tmp_path), open_usage(tmp_path)
    allowance = allowance_of(free, quota=None)
    assert not allowance.is_bounded
    monkeypatch.setattr(free, "_locks", None)
    for bucket in range(3):
        assert allowance.take(bucket, BLOCK)
    monkeypatch.undo()
    bounded = open_usage(tmp_path, quota=3 * BLOCK)
    assert not allowance_of(bounded).take(0, BLOCK), "a block of a neighbour is on its way for each of them"
    allowance.put(0, BLOCK)
    allowance.give_back(1, BLOCK)
    allowance.give_back_spare()
    assert (bounded.used, bounded.reserved) == (BLOCK, BLOCK)
    bounded.leave()
    assert not allowance.is_bounded
    allowance.put(2, BLOCK)
    assert (other.used, other.reserved) == (2 * BLOCK, 0)
    for usage in (free, other):
        usage.leave()


def test_the_bounds_of_the_dead_hold_until_they_are_found(tmp_path: Path) -> None:
    usage, dead = open_usage(tmp_path), open_usage(tmp_path, min_free=0)
    dead.abandon()
    assert usage.is_bounded
    usage.fold_dead()
    assert not usage.is_bounded
    usage.leave()


def test_what_a_smaller_quota_does_not_grant_is_given_back(tmp_path: Path) -> None:
    large, now = 1 << 20, 0.0
    usage = open_usage(tmp_path, quota=large)
    allowance = Allowance(usage, Bounds(large, None, BLOCK), lambda: 1 << 40, clock=lambda: now)
    for _ in range(8):
        assert allowance.take(0, BLOCK)
        allowance.put(0, BLOCK)
    assert allowance.lacking() == 0
    assert usage.reserved > QUOTA
    small = open_usage(tmp_path, quota=QUOTA)
    assert allowance.lacking() == 0, "what is granted comes back, so nothing need go for it"
    now = 1.0
    assert allowance.lacking() > QUOTA, "unless it does not"
    allowance.give_back_excess()
    assert usage.reserved == QUOTA // 8
    assert allowance.lacking() == 0
    for each in (usage, small):
        each.leave()


def test_a_disk_that_is_full_with_bytes_free_has_others_removed(tmp_path: Path) -> None:
    first, second = open_usage(tmp_path, quota=QUOTA), open_usage(tmp_path, quota=QUOTA)
    keeper, other = allowance_of(first), allowance_of(second)
    assert other.refuse(BLOCK, disk_is_full=True) == "space"
    assert (keeper.lacking(), keeper.tightest) == (BLOCK, "space")
    for _ in range(9):
        other.refuse(BLOCK, disk_is_full=True)
    assert keeper.lacking() == BLOCK, "it may be one block, offered again and again"
    first.meet()
    assert keeper.lacking() == 0
    second.leave()
    assert keeper.lacking() == 0
    keeper.refuse(BLOCK, disk_is_full=True)
    assert keeper.lacking() == BLOCK
    first.leave()
    third = open_usage(tmp_path, quota=QUOTA)
    assert allowance_of(third).lacking() == 0
    third.leave()


def test_after_a_loss_of_power_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = open_usage(tmp_path, quota=QUOTA)
    running.abandon()
    monkeypatch.setattr(usage_module, "boot_id", lambda: 42)
    after = open_usage(tmp_path, quota=QUOTA)
    assert not after.is_known
    assert not allowance_of(after).take(0, BLOCK)
    count_all(tmp_path, after)
    assert after.is_known
    assert allowance_of(after).take(0, BLOCK)
    after.leave()


def test_after_a_clean_shutdown_the_count_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_usage(tmp_path).leave()
    monkeypatch.setattr(usage_module, "boot_id", lambda: 42)
    after = open_usage(tmp_path)
    assert after.is_known
    after.leave()


def test_a_file_that_is_no_account_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "usage").write_bytes(b"something else")
    usage = Usage(str(tmp_path))
    assert not usage.is_known
    assert usage.is_there
    (tmp_path / "usage").write_bytes(b"torn")  # by somebody who does not know the locks
    with pytest.raises(ConfigError, match="another version of asyncoffload, or damaged: stop the processes"):
        Usage(str(tmp_path))
    (tmp_path / "usage").unlink()
    assert not usage.is_there


@pytest.mark.parametrize("words", [{4: 1 << 20}, {2: 1 << 40}, {2: -1}, {2: 1, 4: 2}])
def test_an_account_that_is_damaged_is_made_anew(tmp_path: Path, words: dict[int, int]) -> None:
    running = open_usage(tmp_path)
    with open(tmp_path / "usage", "r+b") as file:
        for word, value in words.items():
            file.seek(8 * word)
            file.write(struct.pack("<q", value))
    with pytest.raises(ConfigError, match="or damaged: stop the processes that use"):
        Usage(str(tmp_path))
    running.close()
    usage = Usage(str(tmp_path))
    assert not usage.is_known
    usage.leave()


def test_more_users_than_there_are_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "MAX_PROCESSES", 2)
    users = [open_usage(tmp_path) for _ in range(2)]
    with pytest.raises(ConfigError, match="has 2 users already: give some of the processes another root_dir"):
        open_usage(tmp_path)
    users[0].abandon()
    open_usage(tmp_path).leave()
    users[1].leave()


def test_locks_are_dropped_with_their_description(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _ in range(2))
    mine, theirs = ByteLocks(first), ByteLocks(second)
    assert mine.take(5)
    assert not theirs.take(5)
    assert theirs.take(6)
    assert theirs.is_taken_elsewhere(5)
    assert not mine.is_taken_elsewhere(5)
    os.close(os.dup(first))
    assert theirs.is_taken_elsewhere(5), "closing another descriptor of the description changes nothing"
    os.close(first)
    assert theirs.take(5)
    os.close(second)
    with pytest.raises(OSError, match="Bad file descriptor"):
        theirs.take(5)


def test_a_rename_knows_what_it_replaced(tmp_path: Path) -> None:
    def cannot(old: str, new: str, flags: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def put(nbytes: int, calls: SystemCalls) -> int:
        (tmp_path / "temporary").write_bytes(bytes(nbytes))
        return put_in_place(str(tmp_path / "temporary"), str(tmp_path / "file"), calls)

    assert [put(nbytes, THE_SYSTEM) for nbytes in (5, 7, 3)] == [0, 5, 7]
    assert [put(nbytes, SystemCalls(rename=cannot)) for nbytes in (1, 2)] == [3, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileNotFoundError):
        put_in_place(str(tmp_path / "nothing"), str(tmp_path / "file"))


def test_buckets_are_the_first_digits_of_the_directory() -> None:
    assert bucket_of("/root/of/all/fe_g12/name.bin") == 0xFE


def test_a_bound_that_cannot_be_kept_is_refused_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(self: ByteLocks, byte: int) -> bool:  # noqa: ARG001
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(ByteLocks, "take", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        Usage(str(tmp_path))
