"""One block between its slot and its file, within the bounds of the root; everything here runs in an I/O thread."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from asyncoffload.errors import CorruptBlockError
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.tiers.fs.account_file import bucket_of
from asyncoffload.tiers.fs.eviction import Place
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.outcomes import SHED_BY, Moved, corrupt, refused
from asyncoffload.tiers.fs.recency import Renewals
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.types import CANCELLED, DONE, MISSING, KeyOutcome, TransferJob

_FULL = {errno.ENOSPC, errno.EDQUOT}


class BlockMover:
    """Stores and loads single blocks. Any thread.

    Args:
        space: where the blocks lie; it is open.
        slots: all bytes of the primary.
        slot_bytes: bytes of a slot.
        payload_bytes: bytes of a block, by group.
        tier: the tier's name.
        renewals: which blocks were renewed lately.
    """

    def __init__(
        self,
        space: BlockSpace,
        slots: memoryview,
        slot_bytes: int,
        payload_bytes: Sequence[int],
        tier: str,
        renewals: Renewals,
    ) -> None:
        self._space = space
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._payload_bytes = payload_bytes
        self._tier = tier
        self._renewals = renewals

    def payload_bytes(self, key: OffloadKey) -> int:
        """Bytes of a block."""
        return self._payload_bytes[group_of(key)]

    def store(self, job: TransferJob, key: OffloadKey, slot: int, used: int) -> Moved:
        """Write one block.

        Args:
            job: whose block it is.
            key: the block.
            slot: where its bytes lie.
            used: when it was used, nanoseconds since the epoch.
        """
        if key in job.unwanted:
            return CANCELLED
        space, nbytes = self._space, file_bytes(self.payload_bytes(key))
        for is_last in (False, True):
            try:
                return self._store(key, slot, used)
            except OSError as error:
                if not self._may_make_room(error):
                    return refused(error, key, self._tier, "cannot store")
            # The disk is full although there seemed to be room: others fill it as well.
            if is_last or not space.make_room(nbytes):
                break
        return SHED_BY[space.allowance.refuse(nbytes, disk_is_full=True)]

    def load(self, job: TransferJob, key: OffloadKey, slot: int, used: int) -> KeyOutcome:
        """Read and verify one block; arguments as :meth:`store`."""
        if key in job.unwanted:
            return CANCELLED
        path = self._space.path(key)
        try:
            again = used if self._renewals.is_due(key, used) else None
            self._space.files.read(path, key, self._payload(key, slot), again)
        except FileNotFoundError:
            return MISSING
        except CorruptBlockError as error:
            self._space.allowance.doubt(bucket_of(path))  # it may have taken the place of another bad file
            self._space.set_aside(path, file_bytes(self.payload_bytes(key)))
            return corrupt(error)
        except OSError as error:
            return refused(error, key, self._tier, "cannot load")
        return DONE

    def _may_make_room(self, error: BaseException) -> bool:
        """Whether the disk is full, and evicting may help."""
        is_full = isinstance(error, OSError) and error.errno in _FULL
        return is_full and self._space.allowance.is_bounded and self._space.allowance.holds_files

    def _store(self, key: OffloadKey, slot: int, used: int) -> Moved:
        payload, path, allowance = self._payload(key, slot), self._space.path(key), self._space.allowance
        bucket, nbytes = bucket_of(path), file_bytes(len(payload))
        place = self._space.reclaim(path, nbytes) if self._space.is_pressed else None
        if place is None and not allowance.take(bucket, nbytes):
            place = self._space.reclaim(path, nbytes)
            if place is None:
                return SHED_BY[allowance.refuse(nbytes)]
        if place is not None:
            allowance.take_place(bucket)
        return self._write(path, key, payload, used, place)

    def _write(self, path: str, key: OffloadKey, payload: memoryview, used: int, place: Place | None) -> Moved:
        """Write a block for which there is room, or which takes the place of another one."""
        bucket, nbytes, allowance = bucket_of(path), file_bytes(len(payload)), self._space.allowance
        try:
            has_file = place is not None and place.has_file
            replaced = self._space.files.write(path, key, payload, used, has_file)
            if replaced:
                allowance.replaced(bucket, replaced)
            allowance.put(bucket, nbytes, in_place=place is not None)
        except BaseException:
            allowance.give_back(bucket, nbytes, in_place=place is not None)
            raise
        finally:
            if place is not None:
                self._space.settle(place)
        self._renewals.is_due(key, used)
        return DONE

    def _payload(self, key: OffloadKey, slot: int) -> memoryview:
        begin = slot * self._slot_bytes
        return self._slots[begin : begin + self.payload_bytes(key)]
