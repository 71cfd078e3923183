"""One block to a file and back: open, one vectored write or read, close.

Everything here blocks and runs in an I/O thread. Each function makes a handful of system calls and passes over the
bytes once, for the checksum; both let other threads run meanwhile.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.format import CHECKSUM_AT, PAGE, BlockFormat, checksum, file_bytes, padding
from asyncoffload.tiers.fs.recency import used_again
from asyncoffload.tiers.fs.renaming import put_in_place
from asyncoffload.tiers.fs.system_calls import THE_SYSTEM, SystemCalls

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last one: opening a pipe must not hang
_OVERWRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

TEMPORARY = ".tmp"
SET_ASIDE = ".bad"


class Pages(threading.local):
    """Two page-aligned pages for each thread: a block's header, and the end of a payload that is not whole pages."""

    def __init__(self) -> None:
        both = memoryview(mmap.mmap(-1, 2 * PAGE))
        self.header = both[:PAGE]
        self.tail = both[PAGE:]


class BlockFiles:
    """Writes and reads block files of one format. Any thread.

    Args:
        block_format: says what a header must look like.
        owner: names the temporary files of this process.
        direct: move bytes between device and memory without the page cache. The payloads must then begin at page
            boundaries of memory. A file system that refuses turns this off for good; see :attr:`direct`.
        calls: the operating system's calls, or what is to stand in for them.
    """

    def __init__(
        self,
        block_format: BlockFormat,
        owner: str,
        *,
        direct: bool = False,
        calls: SystemCalls = THE_SYSTEM,
    ) -> None:
        self.direct = direct
        self.calls = calls
        self._format = block_format
        self._suffix = f".{owner}{TEMPORARY}"
        self._open_file = calls.open_file
        self._pwritev = calls.pwritev
        self._preadv = calls.preadv
        self._pages = Pages()

    def temporary(self, path: str) -> str:
        """Where the file is made that is to appear at ``path``."""
        return path + self._suffix

    def write(
        self, path: str, key: OffloadKey, payload: memoryview, used: int | None = None, recycle: bool = False
    ) -> int:
        """Make the block appear at ``path``, whole or not at all; one that stands there already is replaced.

        The bytes are not synced to the device. After a loss of power a file may be torn, which its checksum shows.

        Args:
            path, key, payload, used, recycle: as :meth:`write_unnamed`.

        Returns:
            The length in bytes of the file that was replaced, or 0.

        Raises:
            OSError: the operating system refused. Nothing is left behind, unless it refuses to clean up as well.
        """
        fd = self.write_unnamed(path, key, payload, used, recycle)
        try:
            os.close(fd)
            return self.give_name(path)
        except BaseException:
            self.discard(path)
            raise

    def write_unnamed(
        self, path: str, key: OffloadKey, payload: memoryview, used: int | None = None, recycle: bool = False
    ) -> int:
        """Write the block into the file at :meth:`temporary`, which :meth:`give_name` makes appear at ``path``.

        Args:
            path: where the block is to appear.
            key: the block.
            payload: its bytes.
            used: the time that the file gets, nanoseconds since the epoch; by default the current one.
            recycle: write into the file of the same length that lies at :meth:`temporary`, instead of a new one.

        Returns:
            The descriptor of the file; it is the caller's to close.

        Raises:
            OSError: the operating system refused. Nothing is left behind, unless it refuses to clean up as well.
        """
        pages = self._pages
        header = self._format.header(key, len(payload))
        parts, tail = self._parts(payload)
        if tail:
            tail_bytes = len(payload) % PAGE
            pages.tail[:tail_bytes] = payload[-tail_bytes:]
            pages.tail[tail_bytes:] = bytes(PAGE - tail_bytes)
        pages.header[:CHECKSUM_AT] = header
        pages.header[CHECKSUM_AT:] = checksum(header, parts)
        temporary = self.temporary(path)
        fd = self._open(temporary, _OVERWRITE) if recycle else self._create(temporary)
        try:
            self._write_all(fd, [pages.header, *parts])
            if used is not None:
                os.utime(fd, ns=(used, used))
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            self.discard(path)
            raise
        return fd

    def give_name(self, path: str) -> int:
        """Let the file at :meth:`temporary` appear at ``path``; returns the length of the file it replaced, or 0.

        Raises:
            OSError: the operating system refused.
        """
        return put_in_place(self.temporary(path), path, self.calls)

    def discard(self, path: str) -> None:
        """Remove the file that was to appear at ``path``, as far as the operating system lets us."""
        with suppress(OSError):
            self.calls.unlink(self.temporary(path))

    def read(self, path: str, key: OffloadKey, into: memoryview, used: int | None = None) -> None:
        """Fill ``into`` with the payload of the block at ``path``. After an error its bytes are undefined.

        A file that is not the whole, unchanged block of this key is set aside under another name.

        Args:
            path: where.
            key: the block.
            into: as many bytes as the payload has.
            used: when the block was used, nanoseconds since the epoch; by default the file keeps its time.

        Raises:
            FileNotFoundError: there is no such file, or it was evicted, and perhaps recycled, during the read.
            CorruptBlockError: the file is not what was stored under this key.
            OSError: the operating system refused.
        """
        fd = self._open(path, _READ)
        try:
            trouble = self._read_verified(fd, key, into)
            if trouble:
                self._set_aside(path, fd)
                raise CorruptBlockError(f"{path}: {trouble}", failed_keys=(key,))
            if used is not None:
                with suppress(OSError):  # the disk may be read-only, or the file somebody else's
                    again = used_again(used, os.fstat(fd).st_mtime_ns)
                    os.utime(fd, ns=(again, again))
        finally:
            os.close(fd)

    def check(self, path: str, key: OffloadKey, into: memoryview) -> str:
        """What is wrong with the block at ``path``, in words, or ``""``. Changes nothing on disk; fills ``into``.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the operating system refused.
        """
        fd = self._open(path, _READ)
        try:
            return self._read_verified(fd, key, into)
        finally:
            os.close(fd)

    def _read_verified(self, fd: int, key: OffloadKey, into: memoryview) -> str:
        """Read the block; say what is wrong with it, or nothing."""
        pages = self._pages
        parts, tail = self._parts(into)
        count = self._preadv(fd, [pages.header, *parts], 0)
        if count != file_bytes(len(into)):
            return f"the file ends after {count} bytes of {file_bytes(len(into))}"
        header = self._format.header(key, len(into))
        found = bytes(pages.header[:CHECKSUM_AT])  # as bytes: views are compared element by element, under the GIL
        if found != header:
            return self._format.difference(found, key, len(into))
        if pages.header[CHECKSUM_AT:] != checksum(header, parts):
            return "the checksum does not match"
        if tail:
            tail_bytes = len(into) % PAGE
            into[-tail_bytes:] = pages.tail[:tail_bytes]
        return ""

    def _parts(self, payload: memoryview) -> tuple[list[memoryview], bool]:
        """The payload as whole pages, of which the last may be the thread's own; and whether it is."""
        if not padding(len(payload)):
            return [payload], False
        whole = len(payload) // PAGE * PAGE
        return ([payload[:whole], self._pages.tail] if whole else [self._pages.tail]), True

    def _create(self, temporary: str) -> int:
        try:
            return self._open(temporary, _CREATE)
        except FileNotFoundError:
            with suppress(FileExistsError):  # only the fan-out is made, nothing above: a root that is gone stays gone
                self.calls.mkdir(os.path.dirname(temporary), 0o700)
        except FileExistsError:  # an earlier write of ours that could not clean up
            self.calls.unlink(temporary)
        return self._open(temporary, _CREATE)

    def _open(self, path: str, flags: int) -> int:
        if self.direct:
            try:
                return self._open_file(path, flags | os.O_DIRECT, 0o600)
            except OSError as refusal:
                if refusal.errno != errno.EINVAL:
                    raise
                self.direct = False
                if flags & os.O_CREAT:  # some file systems create the file before they refuse
                    with suppress(FileNotFoundError):
                        self.calls.unlink(path)
        return self._open_file(path, flags, 0o600)

    def _set_aside(self, path: str, fd: int) -> None:
        """Rename a bad file out of the way, unless a good one has taken its place since it was opened.

        Raises:
            FileNotFoundError: nothing is there any more.
        """
        try:
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
                self.calls.replace(path, path + SET_ASIDE)
        except FileNotFoundError:
            raise
        except OSError:  # whatever else happens here, the block stays a miss
            return

    def _write_all(self, fd: int, buffers: list[memoryview]) -> None:
        total = sum(map(len, buffers))
        done = self._pwritev(fd, buffers, 0)
        while done < total:  # rare: asked for the rest, the operating system says what is in the way
            buffers = _without_first(buffers, done - (total - sum(map(len, buffers))))
            moved = self._pwritev(fd, buffers, done)
            if not moved:
                raise OSError(errno.EIO, f"the write stopped after {done} of {total} bytes")
            done += moved


def make_block_files(block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
    """What a tier uses unless it is given something else: the operating system's own calls."""
    return BlockFiles(block_format, owner, direct=direct)


def _without_first(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    rest = []
    for buffer in buffers:
        skipped = min(count, len(buffer))
        count -= skipped
        if skipped < len(buffer):
            rest.append(buffer[skipped:])
    return rest
