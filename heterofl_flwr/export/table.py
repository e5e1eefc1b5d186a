"""What the models of a folder of exports cost and are worth, one row each."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heterofl_flwr.core import formatting
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.export.export import MANIFEST
from heterofl_flwr.runs.files import write_atomic

Manifest = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

CSV, PAGE = "table.csv", "README.md"
_SCORES = ("perplexity", "accuracy", "loss")

_LATENCY = "The median over {runs} runs of one example on {threads} thread: {machine}."
_TEXT = """\
# Exported models

{about}

{table}

- MACs: multiplications (with addition) of one forward pass of one example.
- ms: {latency} The tensors of `model.safetensors` run in the model's own code, in torch.
- `manifest.json` in each folder says what goes in and comes out, how inputs are prepared, and how far each file is from
  the model: at most {tolerance:g} of the largest output, or it would not be here.
"""


def read_manifests(folder: str | Path) -> dict[str, Manifest]:
    """Return the manifests of all exports in a folder by their folders' names, the largest model of a family first."""
    found: dict[str, Manifest] = {}
    for path in sorted(Path(folder).glob(f"[!.]*/{MANIFEST}")):
        try:
            found[path.parent.name] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}; export that model anew, or remove its folder"
            ) from error
    return dict(sorted(found.items(), key=lambda item: (item[1].get("family", ""), -item[1]["parameters"])))


def write_table(folder: str | Path, about: str = "") -> tuple[Table, Table]:
    """Write ``table.csv`` and ``README.md`` about all exports in a folder; return what models and files are like.

    Parameters
    ----------
    folder : str | Path
        The folder in which the models' folders are.
    about : str
        What the README begins with.
    """
    manifests = read_manifests(folder)
    if not manifests:
        raise ConfigError(f"{folder} holds no exports; expected folders with a {MANIFEST}")
    exact = _joined(model_table(manifests, exact=True), file_table(manifests, exact=True))
    write_atomic(Path(folder) / CSV, f"{formatting.render(*exact, 'csv')}\n".encode())
    models, files = model_table(manifests), file_table(manifests)
    latency = next((own["latency"] for own in manifests.values() if own["latency"]), None)
    page = _TEXT.format(
        about=about or "One training, several models.",
        table=formatting.render(*_joined(models, files), "markdown"),
        latency=_LATENCY.format(**latency) if latency else "Latency was not measured.",
        tolerance=next(iter(manifests.values()))["check"]["tolerance"],
    )
    write_atomic(Path(folder) / PAGE, page.encode())
    return models, files


def model_table(manifests: Mapping[str, Manifest], *, exact: bool = False) -> Table:
    """Return heads and rows of what models cost and are worth: with all digits, or as people read numbers."""
    score = next((one for one in _SCORES if any(one in own.get("metrics", {}) for own in manifests.values())), None)
    heads = ["model", "rate", "parameters", "MACs", *([score] if score else [])]
    rows = []
    for name, own in manifests.items():
        row = [name, _cell(_exact, own.get("rate")), f"{own['parameters']:{'' if exact else ','}}"]
        row.append((_exact if exact else formatting.count)(own["macs"]))
        if score:
            value = own.get("metrics", {}).get(score)
            row.append(_cell(_exact, value) if exact else formatting.score(score, value))
        rows.append(row)
    return heads, rows


def file_table(manifests: Mapping[str, Manifest], *, exact: bool = False) -> Table:
    """Return heads and rows of how large files are, and how long an example takes with each."""
    formats = list(dict.fromkeys(name for own in manifests.values() for name in own["files"]))
    timed = any(own["latency"] for own in manifests.values())
    heads = ["model", *(f"{name}{' bytes' if exact else ''}" for name in formats)]
    heads += [f"{name} ms" for name in formats if timed]
    rows = []
    for name, own in manifests.items():
        files = [own["files"].get(one, {}) for one in formats]
        row = [name, *(_cell(_exact if exact else formatting.size, file.get("bytes")) for file in files)]
        row += [_cell(_exact if exact else formatting.number, file.get("milliseconds")) for file in files if timed]
        rows.append(row)
    return heads, rows


def _joined(one: Table, other: Table) -> Table:
    """Return two tables of the same models side by side."""
    return [*one[0], *other[0][1:]], [[*row, *more[1:]] for row, more in zip(one[1], other[1], strict=True)]


def _cell(show: Callable[[Any], str], value: float | None) -> str:
    return formatting.NOTHING if value is None else show(value)


def _exact(value: float) -> str:
    return format(value, ".12g")
