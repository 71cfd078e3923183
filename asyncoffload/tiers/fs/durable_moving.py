"""One block from its slot to its file, and on to where a loss of power cannot reach it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.account_file import bucket_of
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.checking import Scratch
from asyncoffload.tiers.fs.eviction import Evictor, Place
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.moving import BlockMover
from asyncoffload.tiers.fs.outcomes import SHED_BY, Moved, outcome_of, refused
from asyncoffload.tiers.fs.quota import Allowance
from asyncoffload.tiers.fs.recency import Renewals
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.tiers.fs.syncing import SyncGroups
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.tiers.fs.unsynced import Unsynced
from asyncoffload.types import DONE, KeyOutcome

_EXISTING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DurableMover(BlockMover):
    """Stores blocks so that they survive a loss of power. Any thread.

    Args:
        space, slots, slot_bytes, payload_bytes, tier, renewals: as of :class:`BlockMover`.
        groups: syncs.
        is_there: whether a block is known to be on disk; nobody knows whether it is durable.
    """

    def __init__(
        self,
        space: BlockSpace,
        slots: memoryview,
        slot_bytes: int,
        payload_bytes: Sequence[int],
        tier: str,
        renewals: Renewals,
        groups: SyncGroups,
        is_there: Callable[[OffloadKey], bool],
    ) -> None:
        super().__init__(space, slots, slot_bytes, payload_bytes, tier, renewals)
        self._groups = groups
        self._is_there = is_there
        self._scratch = Scratch()

    def _store(self, key: OffloadKey, slot: int, used: int) -> Moved:
        if self._is_there(key) and self._is_whole(key):
            with suppress(FileNotFoundError):
                return self._sync_existing(key)
        return super()._store(key, slot, used)

    def _is_whole(self, key: OffloadKey) -> bool:
        """Whether the file of a block is that block: a loss of power before the last start may have torn it."""
        try:
            into = self._scratch.of(self.payload_bytes(key))
            return not self._space.files.check(self._space.path(key), key, into)
        except OSError:
            return False

    def _write(self, path: str, key: OffloadKey, payload: memoryview, used: int, place: Place | None) -> Moved:
        space = self._space
        stored = StoredFile(space, path, file_bytes(len(payload)), place, lambda error: self._failure(error, key))
        try:
            stored.write(key, payload, used)
        except BaseException:
            stored.take_back()
            raise
        self._groups.add(stored)
        self._renewals.is_due(key, used)
        return stored

    def _sync_existing(self, key: OffloadKey) -> Unsynced:
        """A neighbour may have stored the block, or a process that was killed, and not have synced it yet."""
        space, path = self._space, self._space.path(key)
        found = ExistingFile(space.files, space.allowance, path, lambda error: self._failure(error, key))
        self._groups.add(found)
        return found

    def _failure(self, error: BaseException, key: OffloadKey) -> KeyOutcome:
        """The outcome for a block that could not be made durable; its file is gone."""
        if self._may_make_room(error):
            nbytes = file_bytes(self.payload_bytes(key))
            self._space.make_room(nbytes)
            return SHED_BY[self._space.allowance.refuse(nbytes, disk_is_full=True)]
        return refused(error, key, self._tier, "cannot store") if isinstance(error, OSError) else outcome_of(error)


Failure = Callable[[BaseException], KeyOutcome]
"""The outcome for an error."""


class StoredFile(Unsynced):
    """A new block. It counts as being stored until it is durable.

    Args:
        space: where it is to be; there is room for it.
        path: its name.
        nbytes: its length.
        place: what it takes the place of, if anything.
        failure: tells the outcome for an error.
    """

    def __init__(self, space: BlockSpace, path: str, nbytes: int, place: Place | None, failure: Failure) -> None:
        super().__init__(space.files.calls, -1, path)
        self._files: BlockFiles = space.files
        self._allowance: Allowance = space.allowance
        self._evictor: Evictor | None = space.evictor
        self._bucket = bucket_of(path)
        self._nbytes = nbytes
        self._place = place
        self._failure = failure
        self._status: os.stat_result | None = None
        self._has_name = False

    def write(self, key: OffloadKey, payload: memoryview, used: int) -> None:
        """Write its bytes.

        Raises:
            OSError: the operating system refused.
        """
        recycle = self._place is not None and self._place.has_file
        self._fd = self._files.write_unnamed(self.path, key, payload, used, recycle)
        self._status = os.fstat(self._fd)
        self.passed_by_cache = self._files.direct

    def give_name(self) -> None:
        replaced = self._files.give_name(self.path)
        self._has_name = True
        if replaced:
            self._allowance.replaced(self._bucket, replaced)

    def enter(self) -> KeyOutcome:
        self._allowance.put(self._bucket, self._nbytes, in_place=self._place is not None)
        self._settle_place()
        return DONE

    def undo(self, error: BaseException) -> KeyOutcome:
        self.take_back()
        return self._failure(error)

    def take_back(self) -> None:
        """Remove it, and what was entered for it."""
        self.close()
        try:
            self._remove()
        finally:
            self._allowance.give_back(self._bucket, self._nbytes, in_place=self._place is not None)
            self._settle_place()

    def _remove(self) -> None:
        if self._status is not None:  # otherwise nothing is left of it
            name = self.path if self._has_name else self._files.temporary(self.path)
            _remove_if_same(self.calls, name, self._status)

    def _settle_place(self) -> None:
        if self._place is not None and self._evictor is not None:
            self._evictor.settle(self._place)


class ExistingFile(Unsynced):
    """A block that is there already, by whomever.

    Args:
        files: opens it.
        allowance: where it counts.
        path: its name.
        failure: tells the outcome for an error.

    Raises:
        FileNotFoundError: it is not there after all.
        OSError: the operating system refused.
    """

    def __init__(self, files: BlockFiles, allowance: Allowance, path: str, failure: Failure) -> None:
        super().__init__(files.calls, files.calls.open_file(path, _EXISTING, 0o600), path)
        self._status = os.fstat(self._fd)
        self._allowance = allowance
        self._failure = failure

    def give_name(self) -> None:
        pass

    def enter(self) -> KeyOutcome:
        return DONE

    def undo(self, error: BaseException) -> KeyOutcome:
        # A second attempt might find the operating system content with bytes that it has lost.
        _remove_if_same(self.calls, self.path, self._status)
        self._allowance.doubt(bucket_of(self.path))
        return self._failure(error)


def _remove_if_same(calls: SystemCalls, path: str, status: os.stat_result) -> None:
    """Remove a file by its name, unless a neighbour has given that to another one."""
    with suppress(OSError):  # whatever happens here, nothing relies on this file
        if os.path.samestat(os.stat(path, follow_symlinks=False), status):
            calls.unlink(path)
