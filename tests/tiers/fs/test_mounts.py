"""Which file system a path lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncoffload.tiers.fs.mounts import mount_of

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 22 0:40 / /data ro,noatime shared:9 master:2 - xfs /dev/nvme0n1 rw
32 22 0:41 / /data\040two rw - nfs4 server:/export\040dir rw
33 31 0:42 / /data rw - btrfs /dev/sdb rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind", "source", "point"),
    [
        ("/", "ext4", "/dev/vda", "/"),
        ("/var/cache/kv", "ext4", "/dev/vda", "/"),
        ("/dev/shm/x", "tmpfs", "tmpfs", "/dev/shm"),
        ("/dev/shmx", "ext4", "/dev/vda", "/"),
        ("/data two/kv", "nfs4", "server:/export dir", "/data two"),
        ("/data/kv", "btrfs", "/dev/sdb", "/data"),
    ],
)
def test_the_deepest_and_latest_mount_counts(tmp_path: Path, path: str, kind: str, source: str, point: str) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    mount = mount_of(path, str(table))
    assert (mount.kind, mount.source, mount.point) == (kind, source, point)


def test_options_are_those_of_the_mount(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("".join(TABLE.splitlines(keepends=True)[:3]))
    assert mount_of("/data/kv", str(table)).options == {"ro", "noatime"}


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert mount_of("/", str(tmp_path / "nowhere")).kind == "unknown"


def test_this_machine(tmp_path: Path) -> None:
    mount = mount_of(str(tmp_path))
    assert mount.kind != "unknown"
    assert str(tmp_path).startswith(mount.point)
