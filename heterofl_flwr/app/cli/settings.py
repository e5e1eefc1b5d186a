"""``heterofl settings``: every setting, what it is by default or in a run, and what it means."""

import argparse
import tomllib
from pathlib import Path

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


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    this = subparsers.add_parser(
        "settings",
        help="every setting, its value and what it means",
        description=EXPLAIN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    this.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    from heterofl_flwr.app.cli.arguments import assignments
    from heterofl_flwr.settings import DEFAULTS, describe, from_flat, to_flat, to_toml

    if args.check:
        return _check(args.check)
    if args.format == "markdown":
        print(describe(), end="")
        return 0
    given = assignments(args.set)
    values = to_flat(from_flat(given))
    if args.format == "toml":
        print(to_toml(values if given else DEFAULTS), end="")
    else:
        print("\n".join(_lines(values, {**DEFAULTS, **given})))
    return 0


def _lines(values: dict[str, bool | int | float | str], written: dict[str, bool | int | float | str]) -> list[str]:
    from heterofl_flwr.settings import SPECS, to_toml

    lines = []
    for key, value in values.items():
        stands_for = "" if written[key] == value else f"   (from {written[key]!r})"
        lines += [to_toml({key: value}).rstrip() + stands_for, f"    {SPECS[key].help} [{SPECS[key].expected}]"]
    return lines


def _check(path: Path) -> int:
    from heterofl_flwr.settings import differences

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} has no [tool.flwr.app.config]: {error!r}") from error
    lines = differences(table)
    print("\n".join(lines) if lines else f"{path} has the defaults")
    return 1 if lines else 0
