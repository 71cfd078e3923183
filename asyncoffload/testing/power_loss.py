"""A disk that remembers what was asked of it, and shows what might be left if the power had failed at some moment.

Only that is durable which a sync has covered that had ended by then. Of everything else each piece may be there or not:
pages of a write are new, old, torn or zero; a file is as long as it was, or as it became, or something between; a name
leads to the file that it led to when its directory was last synced, or to any that it was given later, or to none. That
is more than any file system with a journal does. These keep the order of names, which is one of the ways to choose.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from random import Random

from asyncoffload.errors import InvalidArgument
from asyncoffload.testing.aftermath import Aftermath, File, Naming, Write
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.system_calls import EXCHANGE, SystemCalls, rename_with, sync_directory, sync_whole
from asyncoffload.tiers.fs.whole_sync import may_sync_whole

_SYNCS = ("sync_file", "sync_directory", "sync_whole")


class PowerLoss:
    """Pass its :meth:`make_files` to a file tier; what the tier does to its blocks is then done, and remembered.

    That is what goes through :class:`~asyncoffload.tiers.fs.system_calls.SystemCalls`: blocks, their names, and the
    directories that they lie in. Other files below the root, such as ``config.json`` and the account, are left out of
    what is shown, as if they had been lost. Several tiers may share it. All methods: any thread.

    Args:
        root: the tier's ``root_dir``. What lies there already counts as durable.
        lies: calls that do nothing and say that they did, as if somebody had forgotten them: ``"sync_file"``,
            ``"sync_directory"``, ``"sync_whole"``.
        whole: whether whole file systems are synced where many files are waiting; None: where it is right and cheap.

    Raises:
        InvalidArgument: there is no such call to lie about.

    Attributes:
        calls: for whatever else does its I/O through :class:`~asyncoffload.tiers.fs.system_calls.SystemCalls`.
    """

    def __init__(self, root: str | os.PathLike[str], *, lies: Collection[str] = (), whole: bool | None = None) -> None:
        unknown = [name for name in lies if name not in _SYNCS]
        if unknown:
            raise InvalidArgument(f"lies= are names of calls, of {', '.join(_SYNCS)}; got {unknown}")
        self.root = os.path.abspath(root)
        self._lies = frozenset(lies)
        self._whole = whole
        self._lock = threading.RLock()
        self._now = 0
        self._names: dict[str, list[Naming]] = {}
        self._open: dict[int, File] = {}
        self._everything = File()
        self.calls = SystemCalls(
            open_file=self._open_file,
            pwritev=self._pwritev,
            sync_file=self._sync_file,
            sync_directory=self._sync_directory,
            may_sync_whole=self._may_sync_whole,
            sync_whole=self._sync_whole,
            rename=self._rename,
            replace=self._replace,
            unlink=self._unlink,
            mkdir=self._mkdir,
        )
        self._look_around()

    @property
    def now(self) -> int:
        """This moment: how many calls have begun or ended until now."""
        with self._lock:
            return self._now

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        """As ``make_files`` of :class:`~asyncoffload.FileSystemTierManager`."""
        return BlockFiles(block_format, owner, direct=direct, calls=self.calls)

    def had_a_file(self, path: str | os.PathLike[str], since: int, until: int) -> bool:
        """Whether a path led to some file from one moment to another, and nobody had begun to take that away."""
        with self._lock:
            namings = self._names.get(os.path.abspath(path), [])
            first = next((i for i in range(len(namings) - 1, -1, -1) if namings[i].ended <= since), None)
            if first is None:
                return False
            return all(naming.file is not None for naming in namings[first:] if naming.began <= until)

    def show(self, target: str | os.PathLike[str], moment: int, seed: int) -> None:
        """Make a directory as the root might look if the power had failed at a moment.

        Args:
            target: the directory; it does not exist.
            moment: one that is over, see :attr:`now`.
            seed: decides what is lost.
        """
        with self._lock:
            Aftermath(self._names, self._everything, self.root, moment, Random(seed)).make(os.fspath(target))

    # ---- names: one call at a time, so that what is remembered comes in the order in which it was done

    def _open_file(self, path: str, flags: int, mode: int) -> int:
        with self._lock:
            file = None if flags & os.O_EXCL else self._current(path)
            began = self._tick()
            fd = os.open(path, flags, mode)
            if file is None:
                file = File()
                self._enter(began, {path: file})
            self._open[fd] = file
            return fd

    def _rename(self, old: str, new: str, flags: int) -> None:
        with self._lock:
            files = self._current(old), self._current(new)
            began = self._tick()
            rename_with(old, new, flags)
            self._enter(began, {new: files[0], old: files[1] if flags == EXCHANGE else None})

    def _replace(self, old: str, new: str) -> None:
        with self._lock:
            file, began = self._current(old), self._tick()
            os.replace(old, new)
            self._enter(began, {new: file, old: None})

    def _unlink(self, path: str) -> None:
        with self._lock:
            began = self._tick()
            self._current(path)
            os.unlink(path)
            self._enter(began, {path: None})

    def _mkdir(self, path: str, mode: int) -> None:
        with self._lock:
            began = self._tick()
            os.mkdir(path, mode)
            self._enter(began, {path: File(is_directory=True)})

    # ---- bytes and syncs: side by side, as in life

    def _pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        began, content = self._tick(), b"".join(buffers)
        count = os.pwritev(fd, buffers, offset)
        with self._lock:
            self._open[fd].writes.append(Write(began, self._tick(), offset, content[:count]))
        return count

    def _sync_file(self, fd: int) -> None:
        with self._lock:
            file = self._open[fd]
        self._sync("sync_file", file, lambda: os.fdatasync(fd))

    def _sync_directory(self, path: str) -> None:
        with self._lock:
            directory = self._current(path)
        self._sync("sync_directory", directory, lambda: sync_directory(path))

    def _sync_whole(self, path: str) -> None:
        self._sync("sync_whole", self._everything, lambda: sync_whole(path))

    def _may_sync_whole(self, path: str) -> bool:
        return may_sync_whole(path) if self._whole is None else self._whole

    def _sync(self, name: str, file: File | None, call: Callable[[], None]) -> None:
        if name in self._lies:
            return
        began = self._tick()
        call()
        if file is not None:
            with self._lock:
                file.syncs.append((began, self._tick()))

    # ---- memory

    def _tick(self) -> int:
        with self._lock:
            self._now += 1
            return self._now

    def _look_around(self) -> None:
        """What is there at the beginning has always been there."""
        for place, _, names in os.walk(self.root):
            for path in [place, *(os.path.join(place, name) for name in names)]:
                self._names[path] = [Naming(0, 0, self._directory_of(path), _found(path), is_durable=True)]

    def _current(self, path: str) -> File | None:
        """What a path leads to; what somebody has put there in another way has just been put there."""
        namings = self._names.setdefault(os.path.abspath(path), [])
        if (not namings or namings[-1].file is None) and os.path.lexists(path):
            moment = self._tick()
            namings.append(Naming(moment, moment, self._directory_of(path), _found(path)))
        return namings[-1].file if namings else None

    def _enter(self, began: int, files: dict[str, File | None]) -> None:
        ended = self._tick()
        for path, file in files.items():
            naming = Naming(began, ended, self._directory_of(path), file)
            self._names.setdefault(os.path.abspath(path), []).append(naming)

    def _directory_of(self, path: str) -> File | None:
        """The directory that a path is in; None for the root, and what is above."""
        path = os.path.abspath(path)
        return None if path == self.root else self._current(os.path.dirname(path))


def _found(path: str) -> File:
    if os.path.isdir(path):
        return File(is_directory=True)
    with open(path, "rb") as file:
        return File(before=file.read())
