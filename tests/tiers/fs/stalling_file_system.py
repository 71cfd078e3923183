"""A file system that a test can make stall: one in user space, served by a process of its own."""

from __future__ import annotations

import ctypes.util
import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path

import pytest

READY_SECONDS = 30.0


def reason_to_skip() -> str:
    """Why no file system can be mounted here; empty if one can."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0:
        return "mounting takes root"
    if ctypes.util.find_library("fuse3") is None:
        return "libfuse3 is not installed: apt-get install fuse3"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"mfusepy cannot be used: {error}"
    return ""


needs_mounting = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())


class StallingFileSystem:
    """What lies in one directory, seen through another, where every call can be made to hang.

    Attributes:
        directory: where it is mounted.
    """

    def __init__(self, directory: Path, server: subprocess.Popen[str]) -> None:
        self.directory = directory
        self._server = server

    def stall(self) -> None:
        """From now on no call returns."""
        self._say("stall")

    def go_on(self) -> None:
        """The calls that hang go on, and later ones do not hang."""
        self._say("go on")

    def _say(self, word: str) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{word}\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == f"{word}\n"


@contextmanager
def mounted(root: Path) -> Iterator[StallingFileSystem]:
    """A file system below ``root``, for as long as the block lasts; then whatever hangs in it ends with an error."""
    directory, behind = root / "mounted", root / "behind"
    directory.mkdir()
    behind.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.tiers.fs.stalling_file_system", str(behind), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert server.stdout is not None
        ready, _, _ = select.select([server.stdout], [], [], READY_SECONDS)
        assert ready, f"no file system was mounted within {READY_SECONDS} seconds"
        if server.stdout.readline() != "mounted\n":
            refusal = server.communicate()[1].partition("Traceback")[0]
            pytest.skip(f"no file system could be mounted: {refusal.strip()}")
        yield StallingFileSystem(directory, server)
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)


def _serve(behind: str, directory: str) -> None:
    import mfusepy

    flowing = threading.Event()
    flowing.set()

    class PassingOn(mfusepy.Operations):  # type: ignore[misc]
        """Makes every call in the directory behind."""

        use_ns = True

        def init(self, path: str) -> None:  # noqa: ARG002
            threading.Thread(target=_obey, args=[flowing], daemon=True).start()

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = os.fstat(fh) if fh is not None else os.lstat(behind + path)
            times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_ctime", "st_mtime")}
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
            return {**{name: getattr(found, name) for name in names}, **times}

        def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
            return [".", "..", *os.listdir(behind + path)]

        def open(self, path: str, flags: int) -> int:
            return os.open(behind + path, flags & ~os.O_DIRECT)

        def create(self, path: str, mode: int, fi: object = None) -> int:  # noqa: ARG002
            return os.open(behind + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002
            return os.pwrite(fh, data, offset)

        def release(self, path: str, fh: int) -> None:  # noqa: ARG002
            os.close(fh)

        def fsync(self, path: str, datasync: int, fh: int) -> None:  # noqa: ARG002
            os.fsync(fh)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(behind + path if fh is None else fh, length)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            os.utime(behind + path, ns=times or (time.time_ns(),) * 2, follow_symlinks=False)

        def access(self, path: str, amode: int) -> None:
            if not os.access(behind + path, amode):
                raise mfusepy.FuseOSError(errno.ENOENT if not os.path.exists(behind + path) else errno.EACCES)

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(behind + path, mode)

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(behind + path, mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(behind + path)

        def unlink(self, path: str) -> None:
            os.unlink(behind + path)

        def rename(self, old: str, new: str) -> None:
            os.rename(behind + old, behind + new)

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(behind + path)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            return {name: getattr(found, name) for name in names}

    def waiting(method: Callable[..., object]) -> Callable[..., object]:
        @wraps(method)
        def call(*args: object, **options: object) -> object:
            flowing.wait()
            return method(*args, **options)

        return call

    for name, method in list(vars(PassingOn).items()):
        if callable(method) and name != "init":
            setattr(PassingOn, name, waiting(method))
    mfusepy.FUSE(PassingOn(), directory, foreground=True, nothreads=False, default_permissions=True)


def _obey(flowing: threading.Event) -> None:
    print("mounted", flush=True)
    for line in sys.stdin:
        if line == "stall\n":
            flowing.clear()
        else:
            flowing.set()
        with suppress(BrokenPipeError):
            print(line, end="", flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
