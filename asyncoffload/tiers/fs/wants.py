"""What the users of a root want of the one among them that keeps house, and whether it does so."""

from __future__ import annotations

import os

from asyncoffload.tiers.fs.account_file import BEATS, HOUSEKEEPING, KEEPER, MET, REFUSED, WANTED, AccountFile


class Wants(AccountFile):
    """The part of the file that a user and whoever keeps house talk through; any thread."""

    _mine: int  # the first word of this user's record

    @property
    def wanted(self) -> int:
        """Bytes that somebody asked for in vain."""
        return self._sum(WANTED)

    def want(self, nbytes: int) -> None:
        """Let the housekeeping know how many bytes are missing; 0 when none are."""
        if self._word(self._mine + WANTED) != nbytes:
            self._put(self._mine + WANTED, nbytes)

    @property
    def refused(self) -> int:
        """Bytes that the disk has refused since something was removed, those that were offered again more than once."""
        return max(0, self._sum(REFUSED) - self._word(MET))

    def refuse(self, nbytes: int) -> None:
        """The disk is full, whatever it says is free: let the housekeeping remove something."""
        self._add(self._mine + REFUSED, nbytes)

    def meet(self) -> None:
        """The one who keeps house has removed something: what was refused before may be offered again."""
        self._add(MET, self._sum(REFUSED) - self._word(MET))

    def take_housekeeping(self) -> bool:
        """Become the one who keeps house, unless somebody is."""
        with self._writing:  # or it might be left meanwhile
            if self._left or not self._locks.take(HOUSEKEEPING):
                return False
            if self._word(KEEPER) != os.getpid():
                self._put(KEEPER, os.getpid())
            return True

    @property
    def keeper(self) -> int | None:
        """The process in which another user keeps house; None where nobody else does, 0 where it is not known."""
        return self._word(KEEPER) if self._locks.is_taken_elsewhere(HOUSEKEEPING) else None

    @property
    def beats(self) -> int:
        """Changes whenever the one who keeps house looks at what others want."""
        return self._word(BEATS)

    def beat(self) -> None:
        """The one who keeps house looks at what others want."""
        self._add(BEATS, 1)

    def _sum(self, field: int) -> int:
        return int(self._records[: self._n_records, field].sum())
