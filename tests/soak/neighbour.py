"""A process that uses the same blocks below the same root, until it is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.soak.stack import device_for, make_offloader
from tests.soak.traffic import Traffic

CALLERS = 3


class Neighbour:
    """Such a process, from its start on.

    Args:
        root: shared with it.
        seed: decides what it does.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._log = root.parent / "neighbour.log"
        with open(self._log, "wb") as log:
            command = [sys.executable, "-m", __name__, str(root), str(seed)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does; it must have lived until then."""
        assert self._process.poll() is None, f"the neighbour died by itself: {self._log.read_text()[-4000:]}"
        self._process.kill()
        self._process.wait()


async def live(root: Path, seed: int) -> None:
    device = device_for(CALLERS)
    offloader, _ = make_offloader(device, root, seed=seed)
    async with offloader:
        await Traffic(offloader, device, callers=CALLERS, seed=f"neighbour {seed}").run(lambda: True)


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1]), int(sys.argv[2])))
