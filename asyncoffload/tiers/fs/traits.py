"""What a file system really does of what the tier builds upon: tried out, since mount tables do not tell.

Everything here blocks, and works with small files in a directory of the caller's, which are removed again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from asyncoffload.tiers.fs.locks import ByteLocks

LONGEST_NAME = 153
"""Bytes of the longest file name that the tier makes: a block hash of 64 bytes that is being written."""

_ALIGNMENTS = (512, 1024, 2048, 4096, 8192, 16384, 65536)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Trait:
    """Something that the tier builds upon.

    Attributes:
        name: what it is.
        works: whether the file system does it.
        found: what was seen, in words.
        matters: what it means where it does not work, in words.
    """

    name: str
    works: bool
    found: str
    matters: str


@dataclass(frozen=True, slots=True)
class DirectAlignment:
    """What ``O_DIRECT`` asks for; 0 where no alignment was enough.

    Attributes:
        offset: alignment of offsets and lengths in the file, in bytes.
        memory: alignment of addresses, in bytes.
        refusal: what the system said, where it refused.
    """

    offset: int
    memory: int
    refusal: str


def traits_of(directory: str) -> list[Trait]:
    """Try out everything that the tier builds upon, in a directory that belongs to the caller.

    Raises:
        OSError: no file can be made there.
    """
    probes = (_rename, _exclusive, _flock, _byte_locks, _mmap, _unlinked, _mtime, _names)
    return [probe(directory) for probe in probes]


def direct_alignment(directory: str) -> DirectAlignment:
    """The least alignment with which ``O_DIRECT`` writes and reads, found by trying.

    Raises:
        OSError: no file can be made there.
    """
    path = os.path.join(directory, "direct")
    with ExitStack() as stack:
        _made(path, stack)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as refusal:
            return DirectAlignment(0, 0, refusal.strerror or str(refusal))
        stack.callback(os.close, fd)
        memory = memoryview(mmap.mmap(-1, 4 * _ALIGNMENTS[-1]))

        def moves(offset: int, address: int) -> str:
            piece = memory[address : address + offset]
            try:
                # Twice: a file that has a length already takes other paths than a new one.
                done = [os.pwritev(fd, [piece], n * offset) + os.preadv(fd, [piece], n * offset) for n in (0, 1)]
            except OSError as refusal:
                return refusal.strerror or str(refusal)
            return "" if done == [2 * offset] * 2 else "it moved fewer bytes than asked for"

        offset = next((each for each in _ALIGNMENTS if not moves(each, 0)), 0)
        if not offset:
            return DirectAlignment(0, 0, moves(_ALIGNMENTS[-1], 0))
        return DirectAlignment(offset, next(each for each in (4, 64, *_ALIGNMENTS) if not moves(offset, each)), "")


def _rename(directory: str) -> Trait:
    old, new = (os.path.join(directory, name) for name in ("old", "new"))
    with ExitStack() as stack:
        reader, writer = _made(old, stack), _made(new, stack)
        os.pwrite(reader, b"old", 0)
        os.pwrite(writer, b"new", 0)
        os.replace(new, old)
        fd = os.open(old, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        works = os.pread(reader, 3, 0) == b"old" and os.pread(fd, 3, 0) == b"new"
        return Trait(
            "rename replaces a file at once",
            works,
            "readers that had it open keep the old one" if works else "a reader saw another file than it had opened",
            "blocks may be read half replaced, which their checksum shows: loads become misses",
        )


def _exclusive(directory: str) -> Trait:
    path = os.path.join(directory, "exclusive")
    with ExitStack() as stack:
        _made(path, stack)
        works = False
        try:
            os.close(os.open(path, _NEW, 0o600))
        except FileExistsError:
            works = True
    return Trait(
        "O_EXCL refuses a name that is taken",
        works,
        "it does" if works else "a second file was made under the same name",
        "two processes may write into one temporary file; do not share this directory between processes",
    )


def _flock(directory: str) -> Trait:
    return _lock("flock", directory, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _byte_locks(directory: str) -> Trait:
    def take(fd: int) -> None:
        if not ByteLocks(fd).take(0):
            raise BlockingIOError

    return _lock("a lock on bytes", directory, take)


def _lock(name: str, directory: str, take: Callable[[int], object]) -> Trait:
    matters = "processes cannot tell who is alive: do not share this directory between processes"
    path = os.path.join(directory, "lock")
    with ExitStack() as stack:
        mine = _made(path, stack)
        theirs = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            take(mine)
            with suppress(BlockingIOError):
                take(theirs)
                return Trait(f"{name} excludes others", False, "two took one lock", matters)
        except OSError as refusal:
            return Trait(f"{name} excludes others", False, refusal.strerror or str(refusal), matters)
        finally:
            os.close(theirs)
    return Trait(f"{name} excludes others", True, "one waits for the other", matters)


def _mmap(directory: str) -> Trait:
    name, matters = (
        "mmap is shared",
        "processes cannot keep a common account of the bytes: a quota holds per process only",
    )
    path = os.path.join(directory, "mmap")
    with ExitStack() as stack:
        first = _made(path, stack)
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, second)
        try:
            os.posix_fallocate(first, 0, mmap.PAGESIZE)
            one, other = (stack.enter_context(mmap.mmap(fd, mmap.PAGESIZE)) for fd in (first, second))
            one[:4] = b"seen"
        except OSError as refusal:
            return Trait(name, False, refusal.strerror or str(refusal), matters)
        works = other[:4] == b"seen" and os.pread(second, 4, 0) == b"seen"
    return Trait(name, works, "what one writes the others see" if works else "writes stay with their writer", matters)


def _unlinked(directory: str) -> Trait:
    path = os.path.join(directory, "unlinked")
    with ExitStack() as stack:
        fd = _made(path, stack)
        os.pwrite(fd, b"here", 0)
        before = len(os.listdir(directory))
        os.unlink(path)
        try:
            works = os.pread(fd, 4, 0) == b"here"
        except OSError:
            works = False
        stays = len(os.listdir(directory)) >= before
    found = "a reader that has it open still gets it" if works else "a reader that had it open lost it"
    return Trait(
        "a removed file stays for its readers",
        works,
        found + (", under another name" if stays else ""),
        "a block may be lost while it is loaded, which is a miss",
    )


def _mtime(directory: str) -> Trait:
    wanted = 1_700_000_000_123_456_000
    with ExitStack() as stack:
        fd = _made(os.path.join(directory, "mtime"), stack)
        os.utime(fd, ns=(wanted, wanted))
        kept = os.fstat(fd).st_mtime_ns
    works = abs(kept - wanted) < 1000
    return Trait(
        "times are kept to the microsecond",
        works,
        "they are" if works else f"{wanted} ns became {kept} ns",
        "the order in which blocks of one request are removed is lost; they are still removed by age",
    )


def _names(directory: str) -> Trait:
    longest = os.statvfs(directory).f_namemax
    return Trait(
        "names are long enough",
        longest >= LONGEST_NAME,
        f"up to {longest} bytes",
        f"block hashes of more than {(longest - LONGEST_NAME) // 2 + 64} bytes cannot be stored",
    )


def _made(path: str, stack: ExitStack) -> int:
    """A new file, open; closed and removed with the stack."""
    fd = os.open(path, _NEW, 0o600)
    stack.callback(_remove, path)
    stack.callback(os.close, fd)
    return fd


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
