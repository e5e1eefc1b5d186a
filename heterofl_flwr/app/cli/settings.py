"""``heterofl settings``."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence

from heterofl_flwr.settings.stored_settings import Setting, stored_settings, to_toml


def run(args: argparse.Namespace) -> int:
    """Print the settings; without any given, those that are kept."""
    settings = read_settings(args.set) if args.set else stored_settings()
    if args.format == "toml":
        print(to_toml({own.key: own.value if args.set else own.default for own in settings}), end="")
    else:
        print("\n".join(map(_explain, settings)))
    return 0


def read_settings(texts: Sequence[str]) -> list[Setting]:
    """Return every setting where some are given as ``key=value``."""
    # Here, as it loads torch, which takes seconds.
    from heterofl_flwr.settings.flat import SPECS, from_flat, read_assignments, to_flat

    given = read_assignments(texts)
    values = to_flat(from_flat(given))
    return [own._replace(default=given.get(key, own.default), value=values[key]) for key, own in SPECS.items()]


def _explain(setting: Setting) -> str:
    stands_for = "" if setting.default == setting.value else f"   (from {setting.default!r})"
    columns = shutil.get_terminal_size().columns
    text = f"{setting.help} [{setting.expected}]"
    lines = textwrap.indent(textwrap.fill(text, columns - 4, break_long_words=False), " " * 4)
    return f"{to_toml({setting.key: setting.value}).rstrip()}{stands_for}\n{lines}"
