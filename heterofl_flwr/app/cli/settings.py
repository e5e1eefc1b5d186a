"""``heterofl settings``: every setting, what it is by default or in a run, and what it means."""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heterofl_flwr.app.cli import Subparsers, add_command
from heterofl_flwr.errors import ConfigError

EXPLAIN = """
Every setting of a run, its value and what it means. Set them with 'heterofl run --set key=value', or with
'flwr run . --run-config "key=value"'. Values that follow from the data set are shown with the word they stand for.
"""
EXAMPLES = """
examples:
  heterofl settings
  heterofl settings --set data.name=cifar10 --set data.split=non-iid-2
  heterofl settings --format markdown
"""


def add(subparsers: Subparsers) -> None:
    """Add this command."""
    this = add_command(subparsers, "settings", run, "every setting, its value and what it means", EXPLAIN, EXAMPLES)
    this.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; repeatable")
    this.add_argument(
        "--format",
        choices=("text", "toml", "markdown"),
        default="text",
        help="toml: the defaults, or with --set all values, as in pyproject.toml; markdown: the reference",
    )
    this.add_argument(
        "--check", type=Path, metavar="FILE", help="say where the defaults in a pyproject.toml are not these"
    )


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    from heterofl_flwr.settings import DEFAULTS, SPECS, describe, from_flat, to_flat, to_toml

    if args.check:
        return _check(args.check)
    if args.format == "markdown":
        print(describe(), end="")
        return 0
    given = read_assignments(args.set)
    values = to_flat(from_flat(given))
    if args.format == "toml":
        print(to_toml(values if given else DEFAULTS), end="")
        return 0
    written = {**DEFAULTS, **given}
    for key, value in values.items():
        stands_for = "" if written[key] == value else f"   (from {written[key]!r})"
        print(f"{to_toml({key: value}).rstrip()}{stands_for}\n    {SPECS[key].help} [{SPECS[key].expected}]")
    return 0


def _check(path: Path) -> int:
    from heterofl_flwr.settings import differences

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} has no [tool.flwr.app.config]: {error!r}") from error
    lines = differences(table)
    print("\n".join(lines) if lines else f"{path} has the defaults")
    return 1 if lines else 0


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, with dotted keys."""
    from heterofl_flwr.settings import flatten

    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_assignments(texts: Sequence[str]) -> dict[str, bool | int | float | str]:
    """Read ``key=value`` texts. Quotes are not needed: a value is what its setting can be, else text."""
    from heterofl_flwr.settings import SPECS, accepts

    given: dict[str, bool | int | float | str] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: expected key=value, such as train.lr=0.05")
        key = key.strip()
        try:
            value = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            value = written
        is_text = key in SPECS and not accepts(key, value) and accepts(key, written)
        given[key] = value if isinstance(value, bool | int | float | str) and not is_text else written
    return given
