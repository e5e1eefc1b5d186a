"""Print every setting of a run, its value and what it means.

Change a setting with 'heterofl run --set key=value', or with 'flwr run . --run-config "key=value"'. If a setting is
'auto', a value that fits the data set replaces it; the output shows this value, and then (from 'auto').
"""

import argparse
import shutil
import textwrap
from collections.abc import Sequence

from heterofl_flwr.settings.without_torch import Setting, all_settings, to_toml

SUMMARY = "every setting, its value and what it means"
EXAMPLES = """
examples:
  heterofl settings
  heterofl settings --set data.name=cifar10 --set data.split=non-iid-2
  heterofl settings --format toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl settings``."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; repeatable")
    formats = "toml: the defaults, or with --set all values, as in pyproject.toml"
    parser.add_argument("--format", choices=("text", "toml"), default="text", help=formats)


def run(args: argparse.Namespace) -> int:
    """Print all settings."""
    settings = read_settings(args.set) if args.set else all_settings()
    if args.format == "toml":
        print(to_toml({setting.key: setting.value if args.set else setting.default for setting in settings}), end="")
    else:
        print("\n".join(map(_explain, settings)))
    return 0


def read_settings(texts: Sequence[str]) -> list[Setting]:
    """Return all settings after assignments such as ``train.lr=0.05``.

    ``default`` of an assigned setting is the assigned value, which may be ``auto``.
    """
    # Imported here, because it loads torch, which takes seconds.
    from heterofl_flwr.settings.validate import SPECS, from_flat, read_assignments, to_flat

    changes = read_assignments(texts)
    values = to_flat(from_flat(changes))
    return [
        setting._replace(default=changes.get(key, setting.default), value=values[key]) for key, setting in SPECS.items()
    ]


def _explain(setting: Setting) -> str:
    stands_for = "" if setting.default == setting.value else f"   (from {setting.default!r})"
    columns = shutil.get_terminal_size().columns
    text = f"{setting.help} [{setting.expected}]"
    lines = textwrap.indent(textwrap.fill(text, columns - 4, break_long_words=False), " " * 4)
    return f"{to_toml({setting.key: setting.value}).rstrip()}{stands_for}\n{lines}"
