"""Host memory shared by processes: who gets it, who does not, and that nothing is left of it."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.errors import CapacityError, ClosedError, ConfigError, InvalidArgument, TierUnavailable
from asyncoffload.memory.region import HostRegion
from asyncoffload.memory.shared import SharedRegion

MEMBERS = ("scheduler", "rank 0", "rank 1")

CHILD = """
import sys
from asyncoffload.memory.region import HostRegion
from asyncoffload.memory.shared import SharedRegion
name, member = sys.argv[1:3]
shared = SharedRegion(name, member, ("scheduler", "rank 0", "rank 1"), 4, 100)
print("joined", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Child:
    """A member in another process, which evaluates expressions on demand."""

    def __init__(self, name: str, member: str) -> None:
        command = [sys.executable, "-c", CHILD, name, member]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def joined(self) -> Child:
        assert self._read() == "joined"
        return self

    def ask(self, expression: str) -> str:
        assert self._process.stdin is not None
        print(expression, file=self._process.stdin, flush=True)
        return self._read()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def children(name: str) -> Iterator[Any]:
    started: list[Child] = []

    def start(*members: str) -> list[Child]:
        new = [Child(name, member) for member in members]
        started.extend(new)
        return [child.joined() for child in new]

    yield start
    for child in started:
        child.kill()


def abstract_sockets() -> int:
    return Path("/proc/net/unix").read_text().count("@asyncoffload-")


def test_members_of_one_process_share_one_region(name: str) -> None:
    before = abstract_sockets()
    first = SharedRegion(name, "a", ("a", "b"), 4, 100)
    assert first.missing() == ["b"]
    second = SharedRegion(name, "b", ("a", "b"), 4, 100)
    assert first.region is second.region
    assert first.region.view.shape == (4, 100)
    first.wait_for_all(0)
    first.close()
    with second.region.hold([1]):
        assert second.region.is_held(1)
    second.close()
    second.close()
    assert abstract_sockets() == before
    with pytest.raises(ClosedError, match="'b' has left"):
        _ = second.region


def test_processes_see_each_others_bytes_and_notes(name: str, children: Any) -> None:
    (worker,) = children("rank 0")  # it is the first, and makes the memory
    scheduler = SharedRegion(name, "scheduler", MEMBERS, 4, 100)
    try:
        scheduler.region.slot(2)[:3] = b"abc"
        assert worker.ask("bytes(shared.region.slot(2)[:3])") == "b'abc'"
        worker.ask("shared.region.slot(3).__setitem__(99, 7)")
        assert scheduler.region.tensor[3, 99] == 7
        scheduler.notes[5] = -1
        assert worker.ask("shared.notes_of('scheduler')[5]") == "-1"
        assert scheduler.missing() == ["rank 1"]
        with pytest.raises(TierUnavailable, match="rank 1 did not join"):
            scheduler.wait_for_all(0)
        children("rank 1")
        scheduler.wait_for_all(30)
    finally:
        scheduler.close()


def test_the_memory_outlives_whoever_made_it_and_leaves_no_name_behind(children: Any) -> None:
    before = abstract_sockets()
    first, second = children("rank 0", "rank 1")
    first.ask("shared.region.slot(0).__setitem__(0, 42)")
    assert abstract_sockets() == before + 1
    first.kill()
    assert second.ask("shared.region.slot(0)[0]") == "42"
    second.kill()
    assert abstract_sockets() == before
    assert not [entry for entry in os.listdir("/dev/shm") if "asyncoffload" in entry]


def test_after_a_first_member_that_left_the_next_one_begins_anew(name: str) -> None:
    first = SharedRegion(name, "rank 0", MEMBERS, 4, 100)
    first.region.slot(0)[0] = 42
    first.close()
    second = SharedRegion(name, "rank 1", MEMBERS, 4, 100)
    assert second.region.slot(0)[0] == 0
    assert second.missing() == ["scheduler", "rank 0"]
    second.close()


def test_who_has_another_idea_of_the_group_is_refused(name: str, children: Any) -> None:
    (worker,) = children("rank 0")
    with pytest.raises(ConfigError, match=r"n_slots=5.*but the first member had.*n_slots=4"):
        SharedRegion(name, "scheduler", MEMBERS, 5, 100)
    with pytest.raises(ConfigError, match="'rank 0' is there already: two groups"):
        SharedRegion(name, "rank 0", MEMBERS, 4, 100)
    with pytest.raises(ConfigError, match="'rank 2' is not a member"):
        SharedRegion(name, "rank 2", MEMBERS, 4, 100)
    assert worker.ask("shared.missing()") == "['scheduler', 'rank 1']"


def test_a_member_comes_once_to_a_process(name: str) -> None:
    first = SharedRegion(name, "a", ("a", "b"), 4, 100)
    with pytest.raises(ConfigError, match="'a' is there already"):
        SharedRegion(name, "a", ("a", "b"), 4, 100)
    first.close()


def test_memory_that_cannot_be_had_is_a_capacity_error(name: str) -> None:
    with pytest.raises(CapacityError, match="ask for fewer slots"):
        SharedRegion(name, "a", ("a",), 1 << 40, 1 << 20)
    SharedRegion(name, "a", ("a",), 1, 1).close()  # the name is free again


def test_a_region_lies_in_the_memory_that_it_is_given() -> None:
    memory = mmap.mmap(-1, 4096)
    region = HostRegion(5, 100, memory)
    region.slot(4)[0] = 9
    assert memory[400] == 9
    assert region.view.shape == (5, 100)
    region.close()
    with pytest.raises(InvalidArgument, match="41 slots x 100 bytes do not fit into 4096 bytes"):
        HostRegion(41, 100, memory)
