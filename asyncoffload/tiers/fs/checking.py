"""Whether a block that lies on disk is what it should be, without a tier and without its layout at hand."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from dataclasses import dataclass
from enum import StrEnum

from asyncoffload.core.layout import FORMAT_VERSION
from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import MAGIC, PAGE, BlockFormat, Header, file_bytes, read_header
from asyncoffload.tiers.fs.survey import LayoutDirectory
from asyncoffload.types import KVLayout


class State(StrEnum):
    """What a look at a block came to."""

    GOOD = "good"
    BAD = "bad"
    GONE = "gone"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about one block.

    Attributes:
        state: whether it would be served; GONE when it was removed meanwhile.
        trouble: what is wrong with it, in words; empty where nothing is.
        nbytes: bytes that were read.
        set_aside: whether it was put in quarantine.
    """

    state: State
    trouble: str = ""
    nbytes: int = 0
    set_aside: bool = False


class BlockChecker:
    """Reads blocks of one directory as a tier would, and says what a tier would. Any thread; blocks.

    It passes by the page cache where the file system lets it, so that checking takes no memory away from others.

    Args:
        directory: where the blocks lie.
        layout: what they should be; None where ``config.json`` does not tell: the length of a block is then taken from
            its own header.
    """

    def __init__(self, directory: LayoutDirectory, layout: KVLayout | None) -> None:
        self._layout = layout
        self._files = BlockFiles(BlockFormat(directory.fingerprint, directory.rank), "", direct=True)
        self._scratch = Scratch()

    def check(self, path: str, key: OffloadKey, *, set_aside: bool = False) -> Verdict:
        """Whether the file is the whole, unchanged block of this key.

        Args:
            path: the file, wherever it lies.
            key: the block that it should be.
            set_aside: put a bad block in quarantine, as a tier does that loads it. One that a process replaced
                meanwhile is left alone, and so is a file of which nobody knows how long it should be.
        """
        try:
            payload_bytes, trouble = self._payload_bytes(path, key)
            if trouble:
                return Verdict(State.BAD, trouble)
            into = self._scratch.of(payload_bytes)
            trouble, nbytes = self._check(path, key, into), file_bytes(payload_bytes)
            if not trouble:
                return Verdict(State.GOOD, nbytes=nbytes)
            return Verdict(State.BAD, trouble, nbytes, set_aside=set_aside and self._set_aside(path, key, into))
        except FileNotFoundError:
            return Verdict(State.GONE)
        except OSError as error:
            return Verdict(State.UNREADABLE, str(error))

    def _check(self, path: str, key: OffloadKey, into: memoryview) -> str:
        try:
            return self._files.check(path, key, into)
        except OSError as refusal:
            if refusal.errno != errno.EINVAL or not self._files.direct:
                raise
        self._files.direct = False  # some file systems take the flag and refuse the transfer
        return self._files.check(path, key, into)

    def _set_aside(self, path: str, key: OffloadKey, into: memoryview) -> bool:
        bad = os.stat(path, follow_symlinks=False)
        try:
            self._files.read(path, key, into)
        except CorruptBlockError:
            try:
                return not os.path.samestat(os.stat(path, follow_symlinks=False), bad)
            except FileNotFoundError:
                return True
        return False

    def _payload_bytes(self, path: str, key: OffloadKey) -> tuple[int, str]:
        """The bytes that the payload should have, and what is wrong already."""
        group = group_of(key)
        if self._layout is not None:
            if group < len(self._layout.groups):
                return self._layout.group_bytes(group), ""
            return PAGE, f"its layout has groups 0 to {len(self._layout.groups) - 1}, not {group}"
        status, header = os.stat(path, follow_symlinks=False), header_of(path)
        if header is None or header.magic != MAGIC or header.version != FORMAT_VERSION:
            return PAGE, "it does not begin with the header of a block"
        if file_bytes(header.payload_bytes) != status.st_size:
            return PAGE, f"the file has {status.st_size} bytes, its header says {file_bytes(header.payload_bytes)}"
        return header.payload_bytes, ""


def header_of(path: str) -> Header | None:
    """What the first page of a file says; None where the file is shorter. Blocks for one small read.

    Raises:
        OSError: the operating system refused.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        page = os.pread(fd, PAGE, 0)
    finally:
        os.close(fd)
    return read_header(page) if len(page) == PAGE else None


class Scratch(threading.local):
    """Page-aligned memory for each thread, as large as its largest block so far."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, PAGE))

    def of(self, nbytes: int) -> memoryview:
        if nbytes > len(self._memory):
            self._memory = memoryview(mmap.mmap(-1, nbytes))
        return self._memory[:nbytes]
