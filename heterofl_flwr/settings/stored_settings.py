"""Every setting as a file keeps it, for commands that need no more: without torch, which takes seconds to load."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("stored_settings.json")
"""``python docs/generate.py`` writes it."""


Value = bool | int | float | str

KINDS: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}
"""Allowed types of a value, by the type of the default."""


class Setting(NamedTuple):
    """A setting, in a run that changes nothing unless told."""

    key: str
    default: Value
    value: Value
    """what the default stands for"""
    help: str
    expected: str

    def fault(self, text: str) -> str:
        """Return what is wrong with a text as its value, as far as the type tells; nothing if that is right."""
        value, choices = read_value(text), self.expected.removeprefix("one of ")
        if choices != self.expected:
            fits = not {text, str(value)}.isdisjoint(choices.split(", "))
        else:
            # Words that fit too are in quotes.
            fits = "'" in self.expected or type(value) in KINDS.get(type(self.value), (type(value),))
        return "" if fits or value == self.default else self.not_expected(value)

    def not_expected(self, value: object) -> str:
        """Return that a value is another than is expected."""
        auto = ", or 'auto'" if self.default == "auto" and "'auto'" not in self.expected else ""
        return f"{self.key}: found {value!r} ({type(value).__name__}), expected {self.expected}{auto}"


def read_value(text: str) -> object:
    """Return what a text is in TOML, such as a number; the text itself where it is nothing there."""
    try:
        (value,) = tomllib.loads(f"value = {text}").values()  # a second line is not left out
    except ValueError:
        return text
    return value


def stored_settings() -> list[Setting]:
    """Return every setting."""
    return [Setting(*row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def to_toml(values: Mapping[str, Value]) -> str:
    """Return a run config as TOML with dotted keys."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
