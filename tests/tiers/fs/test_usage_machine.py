"""The account of a root under every order of events, deaths between any two writes to it included."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncoffload.tiers.fs.account_file import BUCKETS
from asyncoffload.tiers.fs.counting import Candidate, Census
from asyncoffload.tiers.fs.eviction import Evictor, Place
from asyncoffload.tiers.fs.quota import Allowance, Bounds
from asyncoffload.tiers.fs.renaming import put_in_place
from asyncoffload.tiers.fs.usage import Moment, Usage

QUOTA, BLOCK = 10_000, 1_000
LAYOUT = "0" * 32 + "_r0"
SOME_BUCKETS = st.sampled_from([0, 1, 255])
FUSE = st.integers(-20, 6).map(lambda writes: writes if writes >= 0 else None)
SOME_BYTES = st.sampled_from([BLOCK, BLOCK // 2, 1])


class DiedError(BaseException):
    """The simulated process is dead."""


class Mortal(Usage):
    """An account whose user dies before so many more writes to it; None: lives."""

    fuse: int | None = None

    def _put(self, index: int, value: int) -> None:
        if self.fuse is not None:
            if not self.fuse:
                raise DiedError
            self.fuse -= 1
        super()._put(index, value)


@dataclass(slots=True)
class Storing:
    """A block on its way."""

    bucket: int
    nbytes: int
    temporary: Path
    path: Path
    place: Place | None = None
    replaced: int | None = None


@dataclass(slots=True)
class Counting:
    """A count on its way."""

    bucket: int
    began: Moment | None
    found: int | None = None


@dataclass(slots=True)
class Process:
    """A simulated one."""

    usage: Mortal
    allowance: Allowance
    evictor: Evictor
    storing: list[Storing] = field(default_factory=list)
    counting: list[Counting] = field(default_factory=list)


class Sharing(RuleBasedStateMachine):
    """Several processes with one root, whose files are the truth; one of them at least has bounds."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.processes: list[Process] = []
        self.serial = 0
        for bucket in (0, 1, 255):
            (self.root / LAYOUT / f"{bucket:02x}_g0").mkdir(parents=True)
        self.start()

    def teardown(self) -> None:
        for process in self.processes:
            process.usage.abandon()
        self.processes.clear()
        last = Mortal(str(self.root), quota=QUOTA)
        census = Census(str(self.root), last)
        for bucket in range(BUCKETS):
            assert census.count(bucket)[1]
        assert last.used == self.on_disk
        assert last.reserved == 0
        assert not last.in_doubt
        assert not list(self.root.rglob("*.tmp"))
        last.leave()
        shutil.rmtree(self.root)

    @property
    def on_disk(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*.bin"))

    @precondition(lambda self: len(self.processes) < 4)
    @rule(quota=st.sampled_from([QUOTA, None]))
    def start(self, quota: int | None = QUOTA) -> None:
        usage = Mortal(str(self.root), is_empty=lambda: True, quota=quota)
        allowance = Allowance(usage, Bounds(quota, None, BLOCK), lambda: 1 << 40)
        self.processes.append(Process(usage, allowance, Evictor(usage)))

    @rule(who=st.integers(0, 3))
    def kill(self, who: int) -> None:
        """It dies while it waits."""
        process = self.pick(who)
        if self.is_bounded_without(process):
            self.bury(process)

    @rule(who=st.integers(0, 3), fuse=FUSE)
    def leave(self, who: int, fuse: int | None) -> None:
        process = self.pick(who)
        if not process.storing and self.is_bounded_without(process):
            with self.may_die(process, fuse):
                process.usage.leave()
                self.processes.remove(process)

    @rule(
        who=st.integers(0, 3),
        bucket=SOME_BUCKETS,
        nbytes=SOME_BYTES,
        name=st.integers(0, 5),
        rather_in_place=st.booleans(),
        fuse=FUSE,
    )
    def begin_store(
        self, who: int, bucket: int, nbytes: int, name: int, rather_in_place: bool, fuse: int | None
    ) -> None:
        if not (process := self.pick(who)):
            return
        self.serial += 1
        path = self.root / LAYOUT / f"{bucket:02x}_g0" / f"{bucket:02x}{name:02x}.bin"
        temporary = path.with_name(f"{path.name}.{self.serial:016x}.tmp")
        with self.may_die(process, fuse):
            place = None
            if rather_in_place or not process.allowance.take(bucket, nbytes):
                self.find_candidates(process)
                place = process.evictor.reclaim(nbytes, str(temporary))
                if place is None:
                    process.allowance.refuse(nbytes)
                    return
                process.allowance.take_place(bucket)
            temporary.write_bytes(bytes(nbytes))
            process.storing.append(Storing(bucket, nbytes, temporary, path, place))

    @rule(who=st.integers(0, 3), bucket=SOME_BUCKETS, name=st.integers(0, 50), fuse=FUSE)
    def store(self, who: int, bucket: int, name: int, fuse: int | None) -> None:
        """All of it, with nothing in between."""
        process = self.pick(who)
        if process and not process.storing:
            self.begin_store(who, bucket, BLOCK, name, False, None)
            self.end_store(who, fuse, False)

    @rule(who=st.integers(0, 3), bucket=SOME_BUCKETS)
    def count(self, who: int, bucket: int) -> None:
        """All of it, with nothing in between."""
        self.begin_count(who, bucket)
        self.look(who)
        self.end_count(who, None)

    @rule(who=st.integers(0, 3))
    def rename(self, who: int) -> None:
        process = self.pick(who)
        waiting = [each for each in process.storing if each.replaced is None] if process else []
        if waiting:
            waiting[0].replaced = put_in_place(str(waiting[0].temporary), str(waiting[0].path))

    @rule(who=st.integers(0, 3), fails=st.booleans(), fuse=FUSE)
    def end_store(self, who: int, fuse: int | None, fails: bool) -> None:
        process = self.pick(who)
        if not process or not process.storing:
            return
        each = process.storing.pop(0)
        with self.may_die(process, fuse):
            if each.replaced is None and fails:
                each.temporary.unlink()
                process.allowance.give_back(each.bucket, each.nbytes, in_place=each.place is not None)
                if each.place is not None:
                    process.evictor.settle(each.place)
                return
            if each.replaced is None:
                each.replaced = put_in_place(str(each.temporary), str(each.path))
            if each.replaced:
                process.allowance.replaced(each.bucket, each.replaced)
            process.allowance.put(each.bucket, each.nbytes, in_place=each.place is not None)
            if each.place is not None:
                process.evictor.settle(each.place)

    @rule(who=st.integers(0, 3), files=st.integers(1, 4), fuse=FUSE)
    def evict(self, who: int, fuse: int | None, files: int) -> None:
        if process := self.pick(who):
            self.find_candidates(process)
            with self.may_die(process, fuse):
                process.evictor.evict(1 << 40, files)

    @rule(who=st.integers(0, 3), bucket=SOME_BUCKETS)
    def begin_count(self, who: int, bucket: int) -> None:
        if process := self.pick(who):
            process.counting.append(Counting(bucket, process.usage.moment(bucket)))

    @rule(who=st.integers(0, 3))
    def look(self, who: int) -> None:
        process = self.pick(who)
        for each in process.counting if process else []:
            place = self.root / LAYOUT / f"{each.bucket:02x}_g0"
            each.found = sum(path.stat().st_size for path in place.glob("*.bin"))

    @rule(who=st.integers(0, 3), fuse=FUSE)
    def end_count(self, who: int, fuse: int | None) -> None:
        process = self.pick(who)
        while process in self.processes and process.counting:
            each = process.counting.pop()
            if each.began is not None and each.found is not None:
                with self.may_die(process, fuse):
                    process.usage.counted(each.bucket, each.began, each.found)

    @rule(who=st.integers(0, 3), fuse=FUSE)
    def bury_the_dead(self, who: int, fuse: int | None) -> None:
        if process := self.pick(who):
            with self.may_die(process, fuse):
                process.usage.fold_dead()

    @rule(who=st.integers(0, 3), fuse=FUSE)
    def rest(self, who: int, fuse: int | None) -> None:
        if process := self.pick(who):
            with self.may_die(process, fuse):
                process.allowance.give_back_excess()
                process.allowance.give_back_spare()
                process.allowance.give_back_spare()

    @invariant()
    def the_bound_holds(self) -> None:
        if hasattr(self, "root"):
            assert sum(path.stat().st_size for path in self.root.rglob("*_g0/*")) <= QUOTA

    @invariant()
    def what_is_not_in_doubt_is_exact(self) -> None:
        living = getattr(self, "processes", [])
        if living and not any(process.storing for process in living):
            usage = living[0].usage
            if usage.users == len(living) and not usage.in_doubt:
                assert usage.used == self.on_disk

    def find_candidates(self, process: Process) -> None:
        found = [(path.stat(), path) for path in sorted(self.root.rglob("*.bin"))]
        process.evictor.gather([Candidate(each.st_mtime_ns, str(path), each.st_size) for each, path in found])
        process.evictor.found_all()

    def pick(self, who: int) -> Process:
        if not self.processes:
            self.start()
        return self.processes[who % len(self.processes)]

    def is_bounded_without(self, process: Process) -> bool:
        return any(other.allowance.bounds for other in self.processes if other is not process)

    def bury(self, process: Process) -> None:
        process.usage.abandon()
        if process in self.processes:
            self.processes.remove(process)
        if not self.is_bounded_without(process):
            self.start()

    @contextmanager
    def may_die(self, process: Process, fuse: int | None) -> Iterator[None]:
        process.usage.fuse = fuse
        try:
            yield
        except DiedError:
            self.bury(process)
        finally:
            process.usage.fuse = None


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=80, stateful_step_count=80, deadline=None)
