"""Host memory that several processes share, and that the kernel frees with its last user.

The members of a group (a scheduler and its workers, say) know a name and each other's names. Whoever comes first makes
the memory, without a name in any file system (``memfd_create``), and waits at an abstract socket for the others, which
get its file descriptor from there (``SCM_RIGHTS``). Nothing of this outlives the processes: not the memory, not the
socket, also after SIGKILL. Members in one process share one :class:`~asyncoffload.memory.region.HostRegion`, so that a
slot that one of them holds is held for all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

import numpy as np

from asyncoffload.errors import CapacityError, ClosedError, ConfigError, TierUnavailable
from asyncoffload.memory.region import HostRegion, Pinner
from asyncoffload.types import Int64s

_log = logging.getLogger(__name__)

NOTES_PER_MEMBER = 8
"""Numbers that each member may leave for the others to read."""

_PEER_SECONDS = 10.0
_RETRY_SECONDS = 0.005
_MESSAGE_BYTES = 1 << 16
_WELCOME = b"welcome"

_groups: Final[dict[tuple[int, str], _Group]] = {}
"""By process and name, the groups that have members here; a forked child has none of its parent's."""
_groups_lock = threading.Lock()


class SharedRegion:
    """A member's view of a region that a group of processes on one machine shares.

    Joining blocks for as long as it takes to find or make the memory: milliseconds; and with a pinner for as long as
    that takes.

    Args:
        name: what the members have in common; one living group of this user has it.
        member: who this is, one of ``members``.
        members: all of them, in the same order for everybody.
        n_slots, slot_bytes: as for :class:`HostRegion`; the same for everybody.
        pinner: pins the region in this process, as :meth:`HostRegion.pin`; each process pins it for itself.

    Raises:
        ConfigError: the member is there already, or another member has a different idea of the group.
        CapacityError: the memory cannot be had.
        TierUnavailable: somebody else has the name and does not answer.
    """

    def __init__(
        self,
        name: str,
        member: str,
        members: Sequence[str],
        n_slots: int,
        slot_bytes: int,
        *,
        pinner: Pinner | None = None,
    ) -> None:
        if member not in members:
            raise ConfigError(f"{member!r} is not a member of {name!r}: its members are {', '.join(members)}")
        self.name = name
        self.member = member
        self._members = tuple(members)
        card = _Card(member, self._members, n_slots, slot_bytes)
        with _groups_lock:
            key = os.getpid(), name
            group = _groups.get(key)
            if group is not None and not group.waits_for(member):
                raise ConfigError(f"{member!r} is there already, or was: {name!r} is complete in this process")
            with ExitStack() as undo:
                fd, listener = _find_or_found(name, card)
                undo.callback(os.close, fd)
                if listener is not None:
                    undo.callback(listener.close)
                if group is None:
                    group = _Group(fd, card)
                if listener is not None:
                    undo.pop_all()
                    group.host = _Host(listener, fd, card)
            _groups[key] = group
            group.here.add(member)
        self._group: _Group | None = group
        self.notes[0] = os.getpid()
        if pinner is not None:
            try:
                self.region.pin(pinner)
            except BaseException:
                self.close()
                raise

    @property
    def region(self) -> HostRegion:
        """The slots; one object for all members in this process.

        Raises:
            ClosedError: this member has left.
        """
        return self._joined().region

    @property
    def notes(self) -> Int64s:
        """This member's numbers, which the others read with :meth:`notes_of`. The first is its process id."""
        return self.notes_of(self.member)

    def notes_of(self, member: str) -> Int64s:
        """The numbers of a member: shared memory, int64 of shape ``(NOTES_PER_MEMBER,)``; zeros before it came."""
        notes: Int64s = self._joined().notes[self._members.index(member)]
        return notes

    def missing(self) -> list[str]:
        """The members that have not come yet."""
        return [member for member in self._members if not self.notes_of(member)[0]]

    def wait_for_all(self, timeout: float) -> None:
        """Block until every member has come.

        Raises:
            TierUnavailable: some have not within ``timeout`` seconds; names them.
        """
        deadline = time.monotonic() + timeout
        while missing := self.missing():
            if time.monotonic() > deadline:
                raise TierUnavailable(
                    f"{', '.join(missing)} did not join the shared memory {self.name!r} within {timeout} s: "
                    "all members must run on this machine, as this user and in one network namespace"
                )
            time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """Leave. The last member of a process closes its region, the last process frees the memory. Idempotent."""
        with _groups_lock:
            group, self._group = self._group, None
            if group is None:
                return
            group.here.discard(self.member)
            if group.here:
                return
            _groups.pop((os.getpid(), self.name), None)
        group.close()

    def __repr__(self) -> str:
        state = "left" if self._group is None else repr(self._group.region)
        return f"SharedRegion({self.name!r}, {self.member!r}, {state})"

    def _joined(self) -> _Group:
        if self._group is None:
            raise ClosedError(f"{self.member!r} has left the shared memory {self.name!r}")
        return self._group


@dataclass(frozen=True, slots=True)
class _Card:
    """What a member says when it comes."""

    member: str
    members: tuple[str, ...]
    n_slots: int
    slot_bytes: int

    @property
    def extent(self) -> tuple[int, int]:
        """Where the notes begin behind the slots, and where the memory ends."""
        start = _whole_pages(self.n_slots * self.slot_bytes)
        return start, start + _whole_pages(len(self.members) * NOTES_PER_MEMBER * 8)

    def encode(self) -> bytes:
        return json.dumps([self.member, self.members, self.n_slots, self.slot_bytes]).encode()

    @classmethod
    def decode(cls, text: bytes) -> _Card:
        member, members, n_slots, slot_bytes = json.loads(text)
        return cls(member, tuple(members), n_slots, slot_bytes)


class _Group:
    """The memory as this process has it mapped, and its members here."""

    def __init__(self, fd: int, card: _Card) -> None:
        start, end = card.extent
        try:
            memory = mmap.mmap(fd, end)
        except (OSError, OverflowError, ValueError) as error:
            raise _no_memory(end, error) from error
        n_members = len(card.members)
        self.region = HostRegion(card.n_slots, card.slot_bytes, memory)
        notes = np.frombuffer(memory, dtype=np.int64, count=n_members * NOTES_PER_MEMBER, offset=start)
        self.notes: Int64s = notes.reshape(n_members, NOTES_PER_MEMBER)
        self.here: set[str] = set()
        self.host: _Host | None = None
        self._members = card.members

    def waits_for(self, member: str) -> bool:
        """Whether this member is the first to come by that name."""
        return member in self._members and not self.notes[self._members.index(member)][0]

    def close(self) -> None:
        if self.host is not None:
            self.host.close()
        self.region.close()


class _Host:
    """Hands the memory to those members that come later, once each; gone when all have come."""

    def __init__(self, listener: socket.socket, fd: int, card: _Card) -> None:
        self._listener = listener
        self._fd = fd
        self._card = card
        self._absent = set(card.members) - {card.member}
        self._thread = threading.Thread(target=self._serve, name="asyncoffload-shared-memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):  # closed by the thread: everybody had come
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the thread's accept()
        self._thread.join()

    def _serve(self) -> None:
        with self._listener, suppress(OSError):  # that is how close() ends it
            while self._absent:
                self._receive(self._listener.accept()[0])
        os.close(self._fd)

    def _receive(self, peer: socket.socket) -> None:
        with peer:
            try:
                peer.settimeout(_PEER_SECONDS)
                if _user_of(peer) == os.getuid():
                    self._answer(peer, _Card.decode(peer.recv(_MESSAGE_BYTES)))
            except (OSError, ValueError, TypeError) as error:
                _log.warning("a process asked for shared memory and did not take it: %s", error)

    def _answer(self, peer: socket.socket, card: _Card) -> None:
        if replace(card, member="") != replace(self._card, member=""):
            peer.send(f"it wants {card}, but the first member had {self._card}: configure all alike".encode())
        elif card.member not in self._absent:
            peer.send(f"{card.member!r} is there already: two groups of the same name are starting".encode())
        else:
            socket.send_fds(peer, [_WELCOME], [self._fd])
            self._absent.discard(card.member)


def _find_or_found(name: str, card: _Card) -> tuple[int, socket.socket | None]:
    """The memory's file descriptor from the group's first member; or, as the first, a new one and a listener."""
    deadline = time.monotonic() + _PEER_SECONDS
    while True:
        with suppress(ConnectionRefusedError):  # nobody listens, or not yet
            return _ask(name, card), None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(_address(name))
            listener.listen(len(card.members))
            return _make(card.extent[1]), listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
        except BaseException:
            listener.close()
            raise
        if time.monotonic() > deadline:
            raise TierUnavailable(f"somebody has the name of the shared memory {name!r} and does not listen")
        time.sleep(_RETRY_SECONDS)


def _ask(name: str, card: _Card) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.settimeout(_PEER_SECONDS)
        first.connect(_address(name))
        if _user_of(first) != os.getuid():
            raise TierUnavailable(f"the name of the shared memory {name!r} is taken by another user: choose another")
        try:
            first.send(card.encode())
            answer, fds, _, _ = socket.recv_fds(first, _MESSAGE_BYTES, 1)
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionRefusedError from None  # it left between our two calls
        except TimeoutError:
            raise TierUnavailable(f"the first member of the shared memory {name!r} does not answer") from None
    if not answer:
        raise ConnectionRefusedError
    if not fds:
        raise ConfigError(f"{card.member!r} cannot join the shared memory {name!r}: {answer.decode()}")
    return fds[0]


def _make(nbytes: int) -> int:
    try:
        fd = os.memfd_create("asyncoffload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise _no_memory(nbytes, error) from error
    try:
        os.ftruncate(fd, nbytes)
        # Who could cut it shorter could kill every member with a signal.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise _no_memory(nbytes, error) from error
    return fd


def _no_memory(nbytes: int, error: Exception) -> CapacityError:
    return CapacityError(f"no {nbytes} bytes of host memory to share ({error}): ask for fewer slots")


def _address(name: str) -> bytes:
    return b"\0asyncoffload-" + blake2b(f"{os.getuid()} {name}".encode(), digest_size=20).hexdigest().encode()


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _user_of(peer: socket.socket) -> int:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(user)
