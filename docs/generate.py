"""Write what the code knows into pages (settings, commands, the API) and two lists.

``python docs/generate.py`` fills the regions of pages that begin with a comment
``generated: name`` and end with a comment ``end``. A test checks that they are current.
"""

import csv
import functools
import inspect
import io
import json
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from unittest.mock import patch

from pydantic.fields import FieldInfo
from sphinx.pycode import ModuleAnalyzer
from typing_extensions import is_protocol

from heterofl_flwr.app.main import COMMANDS, parser
from heterofl_flwr.app.settings import read_settings
from heterofl_flwr.core import Fidelity
from heterofl_flwr.core.formatting import markdown
from heterofl_flwr.settings.auto_values import NOT_IID, OTHER, PRESETS
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.validate import DEFAULTS, SPECS
from heterofl_flwr.settings.without_torch import FILE, to_toml

if TYPE_CHECKING:
    from simulations.results.configurations import Configuration
    from simulations.results.runs import Run
    from simulations.results.statistics import Summary

DOCS = Path(__file__).parent
TABLES = DOCS.parent / "results" / "tables"
PROJECT = DOCS.parent / "pyproject.toml"
FIGURES = DOCS / "figures"
CREATOR = re.compile(rb"Matplotlib v([\d.]+)")

_REGION = re.compile(
    r"(<!-- generated: (?P<name>[\w.]+)(?: of (?P<homes>[\w, .-]+))? -->\n)"
    r".*?(?=<!-- end -->)",
    re.DOTALL,
)
_SECTION = re.compile(r"^(?P<title>\w+)\n-{3,}\n", re.MULTILINE)
_ENTRY = re.compile(
    r"^(?P<name>\*{0,2}\w[\w, *]*)(?: : (?P<type>.+))?\n"
    r"(?P<text>(?:(?: {4}.*)?(?:\n|\Z))*)",
    re.MULTILINE,
)


def settings() -> str:
    """Return the reference of all settings, a section for each group."""
    sections = []
    for name, keys in groupby(SPECS, lambda key: key.rpartition(".")[0]):
        title = "The run"
        if name:
            group = Settings.model_fields[name].annotation
            text = (group.__doc__ or "").partition("\n")[0].rstrip(".")
            title = f"`{name}`: {text[:1].lower()}{text[1:]}"
        rows = [
            (f"`{key}`", _value(own.default), own.expected, own.help)
            for key, own in ((key, SPECS[key]) for key in keys)
        ]
        table = markdown(("setting", "default", "expected", "meaning"), rows)
        sections.append(f"## {title}\n\n{table}")
    return "\n\n".join([*sections, f"## What `auto` stands for\n\n{_presets()}"])


def _presets() -> str:
    """Return the values that ``auto`` stands for, by data set."""
    rows = []
    for key in OTHER:
        pairs = [
            [own[key] for own in (PRESETS[name], NOT_IID.get(name, {})) if key in own]
            for name in PRESETS
        ]
        cells = [", ".join(map(_value, values)) for values in [*pairs, [OTHER[key]]]]
        rows.append((f"`{key}`", *cells))
    intro = (
        "Where two values are given, the second is for data that are not split `iid`."
    )
    return f"{intro}\n\n{markdown(('setting', *PRESETS, 'other data'), rows)}\n"


def _value(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def fidelity() -> str:
    """Return the table of variants, as ``Fidelity`` describes them."""
    rows = [
        f"| `{name}` | {_capital(field.description)} |"
        for name, field in Fidelity.__pydantic_fields__.items()
    ]
    return "\n".join(["| argument of `Fidelity` | what differs |", "|---|---|", *rows])


def _capital(text: str | None) -> str:
    words = " ".join(str(text).split())
    return f"{words[:1].upper()}{words[1:]}"


def commands() -> str:
    """Return what the help of each command of ``heterofl`` prints."""
    return "\n\n".join(_help_section(name) for name in COMMANDS)


def _help_section(name: str) -> str:
    printed = io.StringIO()
    # argparse looks up the width of the terminal there, prints, and ends the program.
    with (
        patch.dict(os.environ, COLUMNS="112"),
        suppress(SystemExit),
        redirect_stdout(printed),
    ):
        parser().parse_args([name, "--help"])
    return f"### `heterofl {name}`\n\n```text\n{printed.getvalue().rstrip()}\n```"


def dropin() -> str:
    """Return the diff that converts Flower's quickstart."""
    return f"```diff\n{(DOCS / 'dropin.diff').read_text(encoding='utf-8')}```"


def api(module: ModuleType, homes: Collection[str] = ()) -> str:
    """Return the reference of a module's public names, or of those of some packages."""
    within = tuple(f"heterofl_flwr.{home}." for home in homes)
    names = [
        name
        for name in _public(module)
        if not homes or f"{_home(module, name)}.".startswith(within)
    ]
    return "\n\n".join(_describe(module, name) for name in sorted(names, key=str.lower))


def _home(module: ModuleType, name: str) -> str:
    return str(getattr(getattr(module, name), "__module__", ""))


def _public(module: ModuleType) -> list[str]:
    own = (
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    )
    names = getattr(module, "__all__", None) or [
        name for name in own if not name.startswith("_")
    ]
    return [name for name in names if not name.startswith("__")]


def _describe(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"### `{name}`\n\n{_plain(_attribute_doc(module, name))}"
    parts = _sections(value)
    lines = [f"### `{name}`", ""]
    if inspect.isroutine(value) or (
        "__init__" in vars(value) and not is_protocol(value)
    ):
        lines += [f"`{_call(name, value)}`", ""]
    lines += [_plain(parts.pop("")), ""]
    lines += [
        f"- `{option}`{_default(field)}: {' '.join((field.description or '').split())}"
        for option, field in getattr(value, "__pydantic_fields__", {}).items()
    ]
    for title, text in parts.items():
        if title in ("Parameters", "Attributes"):
            lines += [
                f"- `{entry}`{f' (`{kind}`)' if kind else ''}: {_plain(said)}"
                for entry, kind, said in _entries(text)
            ]
        elif title in ("Returns", "Raises"):
            lines += [
                f"- {title.lower()} `{entry}`: {_plain(said)}"
                for entry, _, said in _entries(text)
            ]
        elif title == "Examples":
            lines += [
                "",
                "```text",
                inspect.cleandoc(text.replace("::\n", "", 1)),
                "```",
            ]
        else:
            lines += ["", _plain(text)]
    if inspect.isclass(value):
        lines += [
            f"- `.{method}`: {_plain(_sections(found)['']).partition(chr(10))[0]}"
            for method, found in _methods(value)
        ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    options = hasattr(value, "__pydantic_fields__") and value == type(value)()
    text = f"{type(value).__name__}()" if options else repr(value)
    return f" (default `{value.__name__ if inspect.isclass(value) else text}`)"


def _methods(value: type) -> Iterator[tuple[str, object]]:
    for name, found in vars(value).items():
        function = (
            found.fget
            if isinstance(found, property)
            else getattr(found, "__func__", found)
        )
        if (
            not name.startswith("_")
            and inspect.isfunction(function)
            and function.__doc__
        ):
            bound = functools.partial(function, None)  # without self or cls
            static = isinstance(found, staticmethod)
            call = _call(name, function if static else bound)
            yield name if isinstance(found, property) else call, function


def _call(name: str, function: Callable[..., object]) -> str:
    """Return a call of ``function`` with its parameters and their defaults."""
    found = inspect.signature(function).parameters.values()
    untyped = [each.replace(annotation=inspect.Parameter.empty) for each in found]
    text = f"{name}{inspect.Signature(untyped)}"
    named = re.sub(r"=<class '[\w.]*?(\w+)'>", r"=\1", text)
    return re.sub(r"=<.*?>(?=[,)])", "=...", named)  # of a factory or a lambda


def _sections(value: object) -> dict[str, str]:
    """Return the parts of a docstring by their titles; the first has an empty one."""
    first, *others = _SECTION.split(inspect.getdoc(value) or "")
    return {"": first.strip()} | dict(zip(others[::2], others[1::2], strict=True))


def _entries(text: str) -> list[tuple[str, str, str]]:
    found = _ENTRY.finditer(text)
    return [
        (match["name"], match["type"] or "", " ".join(match["text"].split()))
        for match in found
    ]


def _plain(text: str) -> str:
    """Return reStructuredText of a docstring as Markdown."""
    return (
        re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
        .replace("``", "`")
        .replace("::\n", ":\n")
        .strip()
    )


def _attribute_doc(module: ModuleType, name: str) -> str:
    """Return the string below an assignment, wherever the package has it."""
    parts = pkgutil.walk_packages(
        getattr(module, "__path__", []), f"{module.__name__}."
    )
    for part in [module.__name__, *(part.name for part in parts)]:
        docs = ModuleAnalyzer.for_module(part).find_attr_docs()
        if ("", name) in docs:
            return " ".join(docs["", name]).strip()
    raise ValueError(f"{module.__name__}.{name} has no documentation")


def claims() -> str:
    """Return the summary of what the runs that are kept say of the paper's claims."""
    text = (TABLES / "claims.md").read_text(encoding="utf-8")
    return text.partition("## Summary\n\n")[2].partition("\n## ")[0]


def authors() -> str:
    """Return the table of runs that the authors' code did too."""
    text = (TABLES / "tables.md").read_text(encoding="utf-8")
    return text.partition("authors' code\n\n")[2].partition("\n## ")[0]


def reproduced() -> str:
    """Return how much of the paper is reproduced."""
    text = (TABLES / "tables.md").read_text(encoding="utf-8")
    total = re.search(
        r"^- (\d+) of (\d+) printed results have a run: (.+)$", text, re.MULTILINE
    )
    if total is None:
        raise ValueError("results/tables/tables.md has no line on printed results")
    runs, printed, verdicts = total.groups()
    return (
        f"Of {printed} results that the paper prints for HeteroFL "
        f"and its ablations, **{runs} have a run here**: {verdicts} "
        f"([all runs](results/tables/tables.md))."
    )


def headline() -> str:
    """Return mixes beside single levels, with the paper's numbers."""
    intro = (
        "Global accuracy in percent, mean ± standard deviation over seeds, IID data; "
        "the paper prints the best round, chosen on the test set:"
    )
    header = ("data", "clients", "after the last round", "best round", "paper", "seeds")
    return f"{intro}\n\n{markdown(header, list(_headline_rows()), '---:')}"


HEADLINE = {
    "mnist": ("a-b-c-d-e", "a-e", "d-e", "a", "d", "e"),
    "cifar10": ("c-d-e", "c-e", "d-e", "c", "d", "e"),
}
"""Mixes of the README's table by data set, each followed by single levels."""


def _headline_rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of runs on IID data that are jobs of Tables 7 and 8."""
    from simulations.results.statistics import show_spread, summarise

    with (TABLES / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "iid"]
    for data, mixes in HEADLINE.items():
        for mix in mixes:
            runs = [
                row
                for row in rows
                if row["dataset"] == data
                and row["configuration"].startswith(f"HeteroFL {mix},")
                and row["metric"] == "global-accuracy"
                and {"7", "8"} & set(row["table"].split())
            ]
            clients = f"mix `{mix}`" if "-" in mix else f"`{mix}` alone"
            ends = (
                show_spread(summarise([float(row[end]) for row in runs]))
                for end in ("final", "best")
            )
            paper = runs[0]["paper"].split()[0]
            yield (
                data.upper().replace("CIFAR10", "CIFAR-10"),
                clients,
                *ends,
                paper,
                str(len(runs)),
            )


def levels(data: str, split: str, rounds: str, last: str) -> str:
    """Return what the levels' own models reached in the family, then differences."""
    from simulations.results.configurations import metrics_of
    from simulations.results.levels import levels_table

    found = _of_rounds(data, split, int(rounds))
    table = levels_table(found, metrics_of(found)[0], int(last))
    *header, _ = table.header  # the price is of what was reached
    less = [row[:-1] for row in table.rows if ", less " in row[1]]
    reached = [row for row in table.rows if ", less " not in row[1]]
    differences = markdown(header, less, "---:")
    return f"{markdown(table.header, reached, '---:')}\n\n{differences}"


@functools.cache
def _family(data: str) -> list["Run"]:
    from simulations.results.runs import read_runs

    return read_runs([TABLES.parent / "family" / data])[0]


def _of_rounds(data: str, split: str, rounds: int) -> Sequence["Configuration"]:
    """Return the family's configurations of so many rounds."""
    from simulations.results.configurations import configurations

    runs = (run for run in _family(data) if run.settings.num_rounds == rounds)
    return configurations(runs)[data, split]


def family() -> bytes:
    """Return the picture of what levels reached in mixes with three seeds."""
    from simulations.results.configurations import configurations
    from simulations.results.figures import draw_levels
    from simulations.svg import to_svg

    found = configurations(_family("mnist"))["mnist", "noniid"]
    complete = {id(run) for one in found if len(one.runs) == 3 for run in one.runs}
    runs = (run for run in _family("mnist") if id(run) in complete)
    found = configurations(runs)["mnist", "noniid"]
    return to_svg(draw_levels(found, "global-accuracy", 1), "family", modes=True)


def family_cifar10() -> bytes:
    """Return the picture of CIFAR-10's levels, less these levels alone."""
    from simulations.results.figures import draw_differences
    from simulations.svg import to_svg

    rows = [(f"{label}, {rounds} rounds", levels) for label, rounds, levels in _alone()]
    return to_svg(
        draw_differences(rows, "points above the level alone"),
        "family-cifar10",
        modes=True,
    )


def alone() -> str:
    """Return CIFAR-10's levels, less these levels alone, as a table."""
    from simulations.results.statistics import show_difference

    rows = [
        (
            label,
            str(rounds),
            str(min(one.number for one in levels.values())),
            *(show_difference(one, 1) for one in levels.values()),
        )
        for label, rounds, levels in _alone()
    ]
    header = ("points above the level alone", "rounds", "seeds", *"abcd")
    return markdown(header, rows, "---:")


def _alone() -> Iterator[tuple[str, int, dict[str, "Summary"]]]:
    """Yield method, rounds and differences of levels, where there are enough seeds."""
    from simulations.results.levels import EQUAL_PARTICIPATION, less_alone
    from simulations.results.statistics import FEWEST

    for rounds, last in ((100, 1), (300, 5)):
        found = _of_rounds("cifar10", "dirichlet-0.3", rounds)
        for label, levels in less_alone(
            found, "global-accuracy", last, EQUAL_PARTICIPATION
        ):
            if levels and all(one.number >= FEWEST for one in levels.values()):
                yield label.split(",")[0], rounds, levels


def disagreement(method: str) -> str:
    """Return in which layers the levels of a method's runs disagree."""
    from simulations.disagreement import table

    return table(sorted((TABLES.parent / "disagreement").glob(f"{method}-*.csv")))


TEXTS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "fidelity": fidelity,
    "commands": commands,
    "dropin": dropin,
    "claims": claims,
    "authors": authors,
    "reproduced": reproduced,
    "headline": headline,
    "alone": alone,
}


def fill(text: str) -> str:
    """Return a page with its regions as they have to be."""

    def written(match: re.Match[str]) -> str:
        name = match["name"]
        homes = [home.strip() for home in (match["homes"] or "").split(",") if home]
        if name in ("levels", "disagreement"):
            found = {"levels": levels, "disagreement": disagreement}[name](*homes)
        else:
            found = TEXTS[name]() if name in TEXTS else api(import_module(name), homes)
        return f"{match[1]}\n{found.strip()}\n\n"

    return _REGION.sub(written, text)


def stored() -> str:
    """Return every setting as ``heterofl_flwr.settings.without_torch`` reads it."""
    rows = [json.dumps(row, ensure_ascii=False) for row in read_settings([])]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def described(project: str) -> str:
    """Return a ``pyproject.toml`` with all settings, as Flower accepts no others."""
    before, header, after = project.partition("[tool.flwr.app.config]\n")
    return before + header + to_toml(DEFAULTS) + "\n" + after.partition("\n\n")[2]


def main() -> None:
    """Write every page that has regions, two figures, and the two lists of settings."""
    for path, draw in (
        (FIGURES / "family.svg", family),
        (FIGURES / "family-cifar10.svg", family_cifar10),
    ):
        new, old = draw(), path.read_bytes() if path.exists() else b""
        if new != old and (not old or CREATOR.findall(new) == CREATOR.findall(old)):
            path.write_bytes(new)
            print(f"wrote {path.name}")
    texts = {
        page: fill(page.read_text(encoding="utf-8"))
        for page in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    }
    texts |= {FILE: stored(), PROJECT: described(PROJECT.read_text(encoding="utf-8"))}
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
