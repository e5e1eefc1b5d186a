"""``heterofl settings``; and how settings are read from a file and from the command line."""

import argparse
import shutil
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings.flat import DEFAULTS, SPECS, accepts, flatten, from_flat, to_flat, to_toml
from heterofl_flwr.settings.types import Flat


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    given = read_assignments(args.set)
    values = to_flat(from_flat(given))
    if args.format == "toml":
        print(to_toml(values if given else DEFAULTS), end="")
    else:
        print("\n".join(_explain(key, value, given.get(key, DEFAULTS[key])) for key, value in values.items()))
    return 0


def _explain(key: str, value: Flat, written: Flat) -> str:
    stands_for = "" if written == value else f"   (from {written!r})"
    text = f"{SPECS[key].help} [{SPECS[key].expected}]"
    indent, columns = " " * 4, shutil.get_terminal_size().columns
    lines = textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return f"{to_toml({key: value}).rstrip()}{stands_for}\n{lines}"


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, with dotted keys."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_assignments(texts: Sequence[str]) -> dict[str, Flat]:
    """Read ``key=value`` texts. Quotes are not needed: a value is what its setting can be, else text."""
    given: dict[str, Flat] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected key=value, such as train.lr=0.05")
        try:
            (value,) = tomllib.loads(f"value = {written}").values()  # a second line is not left out
        except ValueError:
            value = written
        is_text = key in SPECS and not accepts(key, value) and accepts(key, written)
        given[key] = value if isinstance(value, bool | int | float | str) and not is_text else written
    return given
