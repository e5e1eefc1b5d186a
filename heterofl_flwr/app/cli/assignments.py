"""How settings are read from a file and from the command line."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings.flat import SPECS, accepts, flatten
from heterofl_flwr.settings.types import Flat


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
