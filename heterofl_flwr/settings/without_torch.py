"""All settings, read from a JSON file by commands that do not load torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("all_settings.json")
"""Path of the file, which ``python docs/generate.py`` writes."""

Value = bool | int | float | str


class Setting(NamedTuple):
    """Key, default, value, description and expected values of a setting."""

    key: str
    default: Value
    value: Value
    """the value, with ``auto`` resolved"""
    help: str
    expected: str

    def not_expected(self, value: object) -> str:
        """Return the error message for an invalid value."""
        auto = ", or 'auto'" if self.default == "auto" and "auto" not in self.expected else ""
        return f"{self.key}: found {value!r} ({type(value).__name__}), expected {self.expected}{auto}"


def all_settings() -> list[Setting]:
    """Return all settings in the order of the file."""
    return [Setting(*row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def to_toml(values: Mapping[str, Value]) -> str:
    """Return a run config as TOML with dotted keys."""
    return "".join(
        f"{key} = {value if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}\n"
        for key, value in values.items()
    )
