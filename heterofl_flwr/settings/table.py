"""The settings as text: the reference for people, the table of ``pyproject.toml`` for Flower."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from heterofl_flwr.settings.flat import DEFAULTS, GROUPS, SPECS, flatten
from heterofl_flwr.settings.kinds import Flat
from heterofl_flwr.settings.presets import NOT_IID, OTHER, PRESETS

TABLE = "tool.flwr.app.config"
"""Where Flower wants the defaults in ``pyproject.toml``."""


def describe() -> str:
    """Return the reference of all settings, in Markdown."""
    sections = [_section(name, list(keys)) for name, keys in groupby(SPECS, _group)]
    return "\n\n".join([*sections, _presets()]) + "\n"


def to_toml(values: Mapping[str, Flat] = DEFAULTS) -> str:
    """Return a run config as TOML with dotted keys."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def differences(table: Mapping[str, object]) -> list[str]:
    """Return in what a ``[tool.flwr.app.config]`` table differs from the defaults, a line for each setting."""
    found = flatten(table)
    lines = [f"{key}: unknown" for key in found if key not in DEFAULTS]
    for key, default in DEFAULTS.items():
        if key not in found:
            lines.append(f"{key}: missing, expected {default!r}")
        elif repr(found[key]) != repr(default):  # 1, 1.0 and True are equal, and not the same
            lines.append(f"{key}: found {found[key]!r}, expected {default!r}")
    return lines


def _group(key: str) -> str:
    return key.rpartition(".")[0]


def _section(name: str, keys: Sequence[str]) -> str:
    title = f"`{name}`: {_first_line(GROUPS[name])}" if name else "The run"
    specs = {key: SPECS[key] for key in keys}
    rows = [(f"`{key}`", f"`{_toml(spec.default)}`", spec.kind.expected, spec.help) for key, spec in specs.items()]
    return f"### {title}\n\n{_markdown(('setting', 'default', 'expected', 'meaning'), rows)}"


def _presets() -> str:
    header = ("setting", *PRESETS, "other data")
    rows = [(f"`{key}`", *(_stands_for(name, key) for name in PRESETS), f"`{_toml(OTHER[key])}`") for key in OTHER]
    intro = "Where two values are given, the second is for data that are not split `iid`."
    return f"### What `auto` stands for\n\n{intro}\n\n{_markdown(header, rows)}"


def _stands_for(data: str, key: str) -> str:
    values = [table[key] for table in (PRESETS[data], NOT_IID.get(data, {})) if key in table]
    return ", ".join(f"`{_toml(value)}`" for value in values)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines([header, ["---"] * len(header), *rows]))


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _first_line(group: type) -> str:
    text = (group.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _toml(value: Flat) -> str:
    return json.dumps(value, ensure_ascii=False)
