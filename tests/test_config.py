"""Settings are strict, frozen, and their errors say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ByteSize

from asyncoffload.config import FileSystemTierSettings, MemoryTierSettings, OffloaderSettings
from asyncoffload.errors import ConfigError


def test_a_configuration_file_becomes_settings() -> None:
    settings = OffloaderSettings.parse(
        {
            "host_bytes": "8GiB",
            "tiers": [{"type": "fs", "root_dir": "/var/kv", "io_threads": 8}, {"type": "memory", "name": "spare"}],
            "parallel": [["tp", 2], ["pp", 1]],
        }
    )
    assert settings.host_bytes == 8 << 30
    assert settings.tiers == (
        FileSystemTierSettings(root_dir=Path("/var/kv"), io_threads=8),
        MemoryTierSettings(name="spare"),
    )
    assert settings.parallel == (("tp", 2), ("pp", 1))


def test_settings_may_be_built_from_settings() -> None:
    tier = MemoryTierSettings()
    assert OffloaderSettings(host_bytes=ByteSize(1), tiers=(tier,)).tiers == (tier,)


def test_settings_are_frozen() -> None:
    settings = OffloaderSettings.parse({"host_bytes": 1})
    with pytest.raises(ValueError, match="frozen"):
        settings.rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "host_bytes is missing: Host memory"),
        ({"host_byte": 1, "host_bytes": 1}, "unknown setting 'host_byte': did you mean 'host_bytes'?"),
        ({"host_bytes": 1, "zzz": 1}, "unknown setting 'zzz': known are block_bytes, block_dim, block_size,"),
        ({"host_bytes": 0}, "host_bytes = 0: input should be greater than 0"),
        ({"host_bytes": "-8GiB"}, "host_bytes = '-8GiB' is not a size: write bytes, or a number with a unit"),
        ({"host_bytes": "8 parsecs"}, "host_bytes = '8 parsecs' is not a size"),
        ({"host_bytes": True}, "host_bytes = True is not a size"),
        ({"host_bytes": 1, "block_size": 0}, "block_size = 0: input should be greater than or equal to 1"),
        ({"host_bytes": 1, "block_size": "16"}, "block_size = '16': input should be a valid integer"),
        ({"host_bytes": 1, "parallel": [["tp", "2"]]}, "parallel.0 = '2': input should be a valid integer"),
        ({"host_bytes": 1, "tiers": {"type": "fs"}}, "tiers = {'type': 'fs'}: input should be a valid tuple"),
        ({"host_bytes": 1, "tiers": [{"type": "s3"}]}, "tiers.0 = {'type': 's3'} has no known type: say type = \"fs\""),
        ({"host_bytes": 1, "tiers": [{"root_dir": "/"}]}, "tiers.0 = {'root_dir': '/'} has no known type"),
        ({"host_bytes": 1, "tiers": [{"type": "fs"}]}, "tiers.0: root_dir is missing: Where the files lie"),
        (
            {"host_bytes": 1, "tiers": [{"type": "fs", "root_dir": "/", "io_treads": 4}]},
            "tiers.0: unknown setting 'io_treads': did you mean 'io_threads'?",
        ),
        (
            {"host_bytes": 1, "tiers": [{"type": "fs", "root_dir": "/", "io_threads": 0}]},
            "tiers.0: io_threads = 0: input should be greater than or equal to 1, or input should be 'auto'",
        ),
        ({"host_bytes": 1, "tiers": [{"type": "memory"}] * 2}, "tiers: the name 'memory' is taken"),
        ({"host_bytes": 1, "tiers": [{"type": "memory", "name": "CPU"}]}, "tiers: the name 'CPU' is taken"),
        ({"host_bytes": 1, "tiers": [{"type": "memory", "name": "a/b"}]}, "tiers.0: name = 'a/b': string should match"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OffloaderSettings.parse(mapping)
    assert message in str(caught.value)


def test_every_mistake_has_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        OffloaderSettings.parse({"host_bytes": 0, "rank": -1, "tiers": [{"type": "fs", "nmae": "x"}]})
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "host_bytes",
        "tiers.0:",
        "tiers.0:",
        "rank",
    ]


@pytest.mark.parametrize("mapping", [4, [("host_bytes", 1)], {1: 2}])
def test_settings_are_a_mapping_of_names(mapping: object) -> None:
    with pytest.raises(ConfigError, match="settings are a mapping of names to values"):
        OffloaderSettings.parse(mapping)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [OffloaderSettings, FileSystemTierSettings, MemoryTierSettings])
def test_every_setting_explains_itself(settings: type[OffloaderSettings]) -> None:
    assert all(field.description for field in settings.model_fields.values())
