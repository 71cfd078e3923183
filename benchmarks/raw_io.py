"""Bare threads that write and read blocks as ``bench fs`` does, with a checksum or without, and can be waited for."""

from __future__ import annotations

import os
import shutil

import xxhash

from asyncoffload.cli.fs_bench.raw import RawFiles

_files = RawFiles(direct=True)
write_file, read_file = _files.write, _files.read


def remove_tree(directory: str) -> None:
    """Remove files and let the file system finish with it, so that the next measurement does not pay for it."""
    shutil.rmtree(directory)
    os.sync()


def check_and_write(path: str, header: memoryview, payload: memoryview) -> None:
    """:func:`write_file` after a pass over the payload for its checksum."""
    xxhash.xxh3_64().update(payload)
    write_file(path, header, payload)


def read_and_check(path: str, header: memoryview, payload: memoryview) -> None:
    """:func:`read_file`, then a pass over the payload, which is in no cache of this processor yet."""
    read_file(path, header, payload)
    xxhash.xxh3_64().update(payload)
