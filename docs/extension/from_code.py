"""Put into pages what the code itself knows: settings, quirks, the help of commands.

A page holds a line such as ``<!-- from code: settings -->``. When the site is built,
what the code says takes its place, so it is never out of date.
"""

import inspect
import io
import os
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from heterofl_flwr.app.cli.main import COMMANDS, parser
from heterofl_flwr.core import Fidelity
from heterofl_flwr.settings import SPECS, describe

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
MAKEFILE = ROOT / "Makefile"
TABLES = ROOT / "results" / "tables"

_PLACE = re.compile(r"^<!-- from code: (?P<what>[\w -]+) -->$", re.MULTILINE)
_TARGET = re.compile(r"^([a-z]+):.*## (.+)$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^(?P<name>\w+)\n(?P<text>(?: {4}.+\n?)+)", re.MULTILINE)


def settings() -> str:
    """Return the reference of all settings, its headings one level up."""
    return re.sub(r"^###", "##", describe(), flags=re.MULTILINE)


def fidelity() -> str:
    """Return the table of quirks, as ``Fidelity`` or else the settings tell of them."""
    attributes = inspect.cleandoc(Fidelity.__doc__ or "").partition(
        "Attributes\n----------\n"
    )[2]
    known = {
        match["name"]: " ".join(match["text"].split())
        for match in _ATTRIBUTE.finditer(attributes)
    }
    rows = []
    for key, spec in SPECS.items():
        group, _, name = key.partition(".")
        if group == "fidelity" and name != "default":
            text = known.pop(name.replace("-", "_"), spec.help).rstrip(".")
            rows.append(f"| `{key}` | {text[:1].upper()}{text[1:]} |")
    if known:
        raise ValueError(
            f"Fidelity documents {', '.join(known)}, which no setting is for"
        )
    return "\n".join(["| setting | what differs |", "|---|---|", *rows])


def command_help() -> str:
    """Return what ``heterofl --help`` and the help of each of its commands print."""
    names = ["", *COMMANDS]
    return "\n\n".join(_help_section(name) for name in names)


def _help_section(name: str) -> str:
    printed = io.StringIO()
    # argparse looks up the width of the terminal there, prints, and ends the program.
    with (
        patch.dict(os.environ, COLUMNS="88"),
        suppress(SystemExit),
        redirect_stdout(printed),
    ):
        parser().parse_args([*filter(None, [name]), "--help"])
    title, text = f"heterofl {name}".strip(), printed.getvalue().rstrip()
    return f"## `{title}`\n\n```text\n{text}\n```"


def targets() -> str:
    """Return the table that ``make help`` prints."""
    found = _TARGET.findall(MAKEFILE.read_text(encoding="utf-8"))
    rows = [f"| `make {name}` | {text} |" for name, text in found]
    return "\n".join(["| target | what it does |", "|---|---|", *rows])


def claims() -> str:
    """Return what the runs that are kept say of the paper's claims."""
    _, heading, text = (TABLES / "claims.md").read_text("utf-8").partition("## ")
    return heading + text.rstrip()


def authors() -> str:
    """Return the table of runs that the authors' code did too."""
    _, _, text = (
        (TABLES / "tables.md").read_text("utf-8").partition("authors' code\n\n")
    )
    return text.partition("\n## ")[0].rstrip()


TEXTS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "fidelity": fidelity,
    "commands": command_help,
    "targets": targets,
    "claims": claims,
    "authors": authors,
}
"""What a page can ask for."""


def fill(text: str) -> str:
    """Return a page with what it asks for put in."""
    return _PLACE.sub(lambda match: TEXTS[match["what"]](), text)


def _on_read(app: "Sphinx", docname: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
