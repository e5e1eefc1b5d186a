"""Settings from the command line and from files."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import SPECS, Flat, accepts, flatten


def read_config(path: Path) -> dict[str, object]:
    """Return the settings in a TOML file, with dotted keys."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def assignments(texts: Sequence[str]) -> dict[str, Flat]:
    """Read ``key=value`` texts. Quotes are not needed: a value is what its setting can be, else text."""
    wrong = [text for text in texts if not text.partition("=")[1] or not text.partition("=")[0].strip()]
    if wrong:
        raise ConfigError(f"--set {wrong[0]!r}: expected key=value, such as train.lr=0.05")
    pairs = [text.partition("=")[::2] for text in texts]
    return {key.strip(): _value(key.strip(), value) for key, value in pairs}


def _value(key: str, text: str) -> Flat:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if not isinstance(value, bool | int | float | str):
        return text
    if key in SPECS and not accepts(key, value) and accepts(key, text):
        return text
    return value
