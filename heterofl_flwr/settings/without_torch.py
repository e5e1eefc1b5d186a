"""Settings for commands that do not load torch: all of them from a JSON file, and errors for unknown names."""

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from heterofl_flwr.common.errors import ConfigError

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


def unknown_settings(keys: Iterable[str], settings: Collection[str]) -> list[str]:
    """Return an error message for each unknown key, with suggestions of similar names."""
    faults = []
    for key in (key for key in keys if key not in settings):
        # A key with a missing or wrong group may differ from the right key in many letters.
        near = [name for name in settings if name.rpartition(".")[2] == key.rpartition(".")[2]]
        near = near or get_close_matches(key, settings, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else "'heterofl settings' lists them all"
        hint = "sweeps have methods by name: heterofl sweep method=NAME" if key == "method" else hint
        faults.append(f"{key}: no setting has this name; {hint}")
    return faults


def not_usable(faults: Sequence[str]) -> ConfigError:
    """Return one ``ConfigError`` that lists all faults of settings."""
    several = f"{len(faults)} settings are not usable:\n  " if len(faults) > 1 else ""
    return ConfigError(several + "\n  ".join(faults))
