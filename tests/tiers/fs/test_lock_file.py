"""Locks go with those who use them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

from asyncoffload.tiers.fs.lock_file import LockFile
from asyncoffload.tiers.fs.owner import Owner
from asyncoffload.tiers.fs.survey import LayoutDirectory, living_owners
from asyncoffload.tiers.fs.usage import Usage

FORKS = """
import os, sys
from asyncoffload.tiers.fs.owner import Owner
from asyncoffload.tiers.fs.usage import Usage
root = sys.argv[1]
owner, usage = Owner(root), Usage(root, is_empty=lambda: True, quota=1000)
assert usage.take_housekeeping()
pid = os.fork()
if not pid:
    usage.begin(0)
    usage.end(0, added=99)
    usage.leave()
    owner.leave()
    os.write(1, b"child\\n")
    sys.stdin.read()
    os._exit(0)
sys.stdin.close()
os.waitpid(pid, 0)
"""


def test_a_child_keeps_none_of_its_dead_parents_locks(tmp_path: Path) -> None:
    directory = LayoutDirectory(str(tmp_path), b"", 0)
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"child\n"
        usage = Usage(str(tmp_path))
        assert usage.keeper == parent.pid
        assert usage.used == 0, "the child has no part in what its parent enters"
        assert len(living_owners(directory)) == 1
        parent.kill()
        parent.wait()
        assert usage.fold_dead() == 1
        assert usage.quota is None
        assert usage.take_housekeeping()
        assert not living_owners(directory)
        parent.stdin.close()
        assert parent.stdout.read() == b"", "the child has ended"
    usage.leave()


def test_who_is_forgotten_has_left(tmp_path: Path) -> None:
    forgotten, owner = Usage(str(tmp_path), quota=1000), Owner(str(tmp_path))
    assert forgotten.take_housekeeping()
    usage, directory = Usage(str(tmp_path)), LayoutDirectory(str(tmp_path), b"", 0)
    assert (usage.quota, len(living_owners(directory))) == (1000, 1)
    del forgotten, owner
    gc.collect()
    assert usage.fold_dead() == 1
    assert usage.quota is None
    assert usage.take_housekeeping()
    assert not living_owners(directory)
    usage.leave()


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    file = LockFile(str(tmp_path / "file"), os.O_CREAT)
    assert file.is_open
    file.close()
    assert not file.is_open
    directory = os.open(tmp_path, os.O_RDONLY)
    os.dup2(directory, file.fd)  # the number is somebody else's now
    file.close()
    os.fstat(file.fd)
    os.close(file.fd)
    if directory != file.fd:
        os.close(directory)
