"""Every setting as a file keeps it, for commands that need no more: without torch, which takes seconds to load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("kept.json")
"""``python docs/generate.py`` writes it."""


class Kept(NamedTuple):
    """A setting of a run that changes nothing."""

    key: str
    default: bool | int | float | str
    value: bool | int | float | str
    """what the default stands for"""
    text: str
    """what it means, and what is expected"""


def kept_settings() -> list[Kept]:
    """Return every setting."""
    return [Kept(*row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def to_toml(values: Mapping[str, bool | int | float | str]) -> str:
    """Return a run config as TOML with dotted keys."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
