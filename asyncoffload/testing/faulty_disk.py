"""The system calls of a file tier, which fail, tear, fall short or take time as a test plans it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from asyncoffload.core.layout import key_of
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.fault_plan import FaultPlan, FaultRule
from asyncoffload.testing.gates import Gate
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import PAGE, BlockFormat
from asyncoffload.tiers.fs.system_calls import SystemCalls, sync_directory

DiskCall = Literal["open", "create", "read", "write", "sync", "sync_directory"]


@dataclass(frozen=True, slots=True)
class Refused:
    """The call fails.

    Attributes:
        number: the ``errno``, such as ``errno.ENOSPC`` or ``errno.EIO``.
    """

    number: int


@dataclass(frozen=True, slots=True)
class Torn:
    """A write says that all is well, but behind the first bytes the file has zeros, as after a loss of power.

    Attributes:
        kept: bytes that are written, rounded down to whole pages.
    """

    kept: int = 0


@dataclass(frozen=True, slots=True)
class Short:
    """The call moves fewer bytes than it was asked for, and says so.

    Attributes:
        moved: bytes that are moved, rounded down to whole pages.
    """

    moved: int = PAGE


@dataclass(frozen=True, slots=True)
class Flipped:
    """A read delivers a byte that differs by one bit, and says that all is well.

    Attributes:
        at: which byte, counted from the beginning of the file.
    """

    at: int = PAGE


@dataclass(frozen=True, slots=True)
class Delayed:
    """The call takes its time, and then does what it would have done.

    Attributes:
        seconds: how long.
    """

    seconds: float


DiskFault = Refused | Torn | Short | Flipped | Delayed

_FAULTS: dict[DiskCall, tuple[type[DiskFault], ...]] = {
    **dict.fromkeys(get_args(DiskCall), (Refused, Delayed)),
    "read": (Refused, Delayed, Short, Flipped),
    "write": (Refused, Delayed, Short, Torn),
}
"""What each call can suffer."""


class FaultyDisk:
    """Pass its :meth:`make_files` to a file tier; the tier then does its I/O through this disk, in its own threads.

    ``open`` is opening a block for reading, ``create`` is making its file, ``read`` and ``write`` move its bytes. With
    ``durability="fsync"``, ``sync`` makes its bytes durable, and ``sync_directory`` the names in a directory, of which
    a plan cannot choose by key. Each call first passes its gate, then meets the faults that are planned for it: all
    delays, and the first of the others.

    Args:
        seed: decides where faults with a ``chance`` strike.
        sleep: what a delay does, in an I/O thread; pass ``loop.block`` of a :class:`VirtualTimeLoop` for virtual time.

    Attributes:
        gates: a gate for each of the calls, all open at first; what passes is the path of the file or directory.
    """

    def __init__(self, *, seed: int = 0, sleep: Callable[[float], object] = time.sleep) -> None:
        self._plan: FaultPlan[DiskFault] = FaultPlan(get_args(DiskCall), seed)
        self._sleep = sleep
        self.gates: dict[DiskCall, Gate[str]] = {call: Gate() for call in get_args(DiskCall)}

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        """As ``make_files`` of :class:`~asyncoffload.FileSystemTierManager`."""
        calls = SystemCalls(
            open_file=self._open,
            pwritev=self._pwritev,
            preadv=self._preadv,
            sync_file=self._sync_file,
            sync_directory=self._sync_directory,
            may_sync_whole=lambda path: False,  # noqa: ARG005 (a plan is about single files)
        )
        return BlockFiles(block_format, owner, direct=direct, calls=calls)

    def add(
        self,
        call: DiskCall,
        fault: DiskFault,
        *,
        keys: Iterable[OffloadKey] | None = None,
        calls: Container[int] | None = None,
        times: int | None = None,
        chance: float = 1.0,
    ) -> FaultRule[DiskFault]:
        """Let something go wrong from now on. The conditions are those of :meth:`FaultPlan.add`.

        Every call can be ``Refused`` and ``Delayed``; a read can be ``Short`` and ``Flipped``, a write ``Short`` and
        ``Torn``.

        Raises:
            InvalidArgument: the call cannot suffer that, or what :meth:`FaultPlan.add` says.
        """
        if not isinstance(fault, _FAULTS.get(call, object)):
            possible = ", ".join(kind.__name__ for kind in _FAULTS[call])
            raise InvalidArgument(f"{call!r} cannot suffer {fault!r}: choose one of {possible}")
        if call == "sync_directory" and keys is not None:
            raise InvalidArgument("directories have no keys: leave out keys= for 'sync_directory'")
        return self._plan.add(call, fault, keys=keys, calls=calls, times=times, chance=chance)

    def recover(self) -> None:
        """The disk is sound again, and all gates are open."""
        self._plan.clear()
        for gate in self.gates.values():
            gate.open()

    def _open(self, path: str, flags: int, mode: int) -> int:
        self._meet("create" if flags & os.O_CREAT else "open", path)
        return os.open(path, flags, mode)

    def _pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        match self._meet("write", _path(fd)):
            case Torn(kept):
                total = sum(map(len, buffers))
                kept_buffers = _first(buffers, kept)
                if kept_buffers:
                    os.pwritev(fd, kept_buffers, offset)
                os.ftruncate(fd, offset + total)
                return total
            case Short(moved):
                few = _first(buffers, moved)
                return os.pwritev(fd, few, offset) if few else 0
        return os.pwritev(fd, buffers, offset)

    def _preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        fault = self._meet("read", _path(fd))
        if isinstance(fault, Short):
            few = _first(buffers, fault.moved)
            return os.preadv(fd, few, offset) if few else 0
        count = os.preadv(fd, buffers, offset)
        if isinstance(fault, Flipped):
            _flip(buffers, fault.at - offset)
        return count

    def _sync_file(self, fd: int) -> None:
        self._meet("sync", _path(fd))
        os.fdatasync(fd)

    def _sync_directory(self, path: str) -> None:
        self._meet("sync_directory", path)
        sync_directory(path)

    def _meet(self, call: DiskCall, path: str) -> DiskFault | None:
        """Pass the gate, and suffer what is planned; what the call itself has to do is returned."""
        self.gates[call].pass_in_thread(path)
        rest = None
        for fault in self._plan.faults(call, _key(path)):
            if isinstance(fault, Delayed):
                self._sleep(fault.seconds)
            else:
                rest = rest or fault
        if isinstance(rest, Refused):
            error = TimeoutError if rest.number == errno.ETIMEDOUT else OSError
            raise error(rest.number, os.strerror(rest.number), path)
        return rest


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _key(path: str) -> OffloadKey | None:
    """The key of a block's file, or of the temporary file that becomes it."""
    directory, _, name = path.rpartition("/")
    return key_of(os.path.basename(directory), f"{name.partition('.')[0]}.bin")


def _first(buffers: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """The first bytes of some buffers, in whole pages, which direct I/O takes as well."""
    left = nbytes // PAGE * PAGE
    few = []
    for buffer in buffers:
        if left:
            few.append(buffer[:left])
            left -= len(few[-1])
    return few


def _flip(buffers: Sequence[memoryview], at: int) -> None:
    for buffer in buffers:
        if 0 <= at < len(buffer):
            buffer[at] ^= 1
        at -= len(buffer)
