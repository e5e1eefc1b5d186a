"""All settings, read from a JSON file by commands that do not load torch."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("all_settings.json")
"""Path of the file, which ``python docs/generate.py`` writes."""


Value = bool | int | float | str

KINDS: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}
"""Valid types of a value, by the type of ``Setting.value``."""


class Setting(NamedTuple):
    """Key, default, value, description and expected values of a setting."""

    key: str
    default: Value
    value: Value
    """the value, with ``auto`` resolved"""
    help: str
    expected: str

    def fault(self, text: str) -> str:
        """Return an error message if ``text`` cannot be a value of this setting; '' if it may be a value."""
        value, choices = read_value(text), self.expected.removeprefix("one of ")
        if choices != self.expected:
            fits = not {text, str(value)}.isdisjoint(choices.split(", "))
        else:
            # Words in quotes in ``expected`` are valid texts for a setting of another type.
            fits = "'" in self.expected or type(value) in KINDS.get(type(self.value), (type(value),))
        return "" if fits or value == self.default else self.not_expected(value)

    def not_expected(self, value: object) -> str:
        """Return the error message for an invalid value."""
        auto = ", or 'auto'" if self.default == "auto" and "'auto'" not in self.expected else ""
        return f"{self.key}: found {value!r} ({type(value).__name__}), expected {self.expected}{auto}"


def read_value(text: str) -> object:
    """Parse a text as a TOML value; return the text itself if it is no TOML value."""
    try:
        (value,) = tomllib.loads(f"value = {text}").values()  # ValueError for a text with a second assignment
    except ValueError:
        return text
    return value


def all_settings() -> list[Setting]:
    """Return all settings in the order of the file."""
    return [Setting(*row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def to_toml(values: Mapping[str, Value]) -> str:
    """Return a run config as TOML with dotted keys."""
    return "".join(
        f"{key} = {value if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}\n"
        for key, value in values.items()
    )
