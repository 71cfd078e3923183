"""The page of defaults says what the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from asyncoffload.config import FileSystemTierSettings, MemoryTierSettings, OffloaderSettings

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
SECTIONS = {
    "`OffloaderSettings`": OffloaderSettings,
    "`FileSystemTierSettings`": FileSystemTierSettings,
    "`MemoryTierSettings`": MemoryTierSettings,
}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, ByteSize):
        return f'`"{field.default.human_readable(separator=" ").replace(".0", "").replace(" ", "")}"`'
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    return "none" if field.default in (None, ()) else f"`{field.default}`"


def _table(settings: type[OffloaderSettings]) -> list[str]:
    rows = [f"| `{name}` | {_default(field)} | {field.description} |" for name, field in settings.model_fields.items()]
    return ["| setting | default | what it does, and why |", "|---|---|---|", *rows]


@pytest.mark.parametrize("section", SECTIONS)
def test_each_setting_has_its_row(section: str) -> None:
    _, _, text = PAGE.read_text().partition(f"## {section}\n")
    written = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert written == _table(SECTIONS[section])  # type: ignore[arg-type]
