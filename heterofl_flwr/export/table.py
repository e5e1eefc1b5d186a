"""What the models of a folder of exports cost and are worth, one row each."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from heterofl_flwr.core import formatting
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.export.export import MANIFEST
from heterofl_flwr.runs.files import reading, write_atomic

Manifest = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]
Column = tuple[str, str, Callable[[Any], str], Sequence[Any]]
"""The head for people, the head of the CSV file, how people read a value, and each model's value."""

CSV, PAGE = "table.csv", "README.md"
_SCORES = ("perplexity", "accuracy", "loss")
_NEEDED = ("parameters", "macs", "files", "check", "latency")

_LATENCY = "The median over {runs} runs; examples: {examples}, threads: {threads}; {machine}."
_TEXT = """\
# Exported models

{about}

{table}

- MACs: multiplications (with addition) of one forward pass of one example.
- ms: {latency} The tensors of `model.safetensors` run in the model's own code, in torch.
- `manifest.json` in each folder says what goes in and comes out, how inputs are prepared, and how far each file is from
  the model: at most {tolerance:g} of the largest output, or it would not be here.
"""


def write_table(folder: str | Path, about: str = "") -> tuple[Table, Table]:
    """Write ``table.csv`` and ``README.md`` about all exports in a folder; return what models and files are like.

    Parameters
    ----------
    folder : str | Path
        The folder in which the models' folders are.
    about : str
        What the README begins with.
    """
    found: dict[str, Manifest] = {}
    for path in sorted(Path(folder).glob(f"[!.]*/{MANIFEST}")):
        with reading(path, "export that model anew, or remove its folder"):
            own = json.loads(path.read_text(encoding="utf-8"))
            found[path.parent.name] = {**own, **{name: own[name] for name in _NEEDED}}
    if not found:
        raise ConfigError(f"{folder} holds no exports; expected folders with a {MANIFEST}")
    # The largest model of a family comes first.
    manifests = dict(sorted(found.items(), key=lambda item: (item[1].get("family", ""), -item[1]["parameters"])))
    every = list(manifests.values())
    models, files = _columns(every)
    exact = _table(manifests, [(head, head, _exact, values) for _, head, _, values in (*models, *files)])
    write_atomic(Path(folder) / CSV, f"{formatting.render(*exact, 'csv')}\n".encode())
    latency = next((own["latency"] for own in every if own["latency"]), None)
    page = _TEXT.format(
        about=about or "One training, several models.",
        table=formatting.render(*_table(manifests, [*models, *files]), "markdown"),
        latency=_LATENCY.format(**latency) if latency else "Latency was not measured.",
        tolerance=every[0]["check"]["tolerance"],
    )
    write_atomic(Path(folder) / PAGE, page.encode())
    return _table(manifests, models), _table(manifests, files)


def _columns(every: Sequence[Manifest]) -> tuple[list[Column], list[Column]]:
    """Return what the models cost and how good they are; how large their files are and how long they run."""
    metrics = [own.get("metrics", {}) for own in every]
    score = next((name for name in _SCORES if any(name in own for own in metrics)), None)
    models: list[Column] = [
        ("rate", "rate", _exact, [own.get("rate") for own in every]),
        ("parameters", "parameters", "{:,}".format, [own["parameters"] for own in every]),
        ("MACs", "MACs", formatting.count, [own["macs"] for own in every]),
    ]
    if score:
        models.append((score, score, partial(formatting.score, score), [own.get(score) for own in metrics]))
    files = {name: [other["files"].get(name, {}) for other in every] for own in every for name in own["files"]}
    sizes: list[Column] = []
    times: list[Column] = []
    for name, own in files.items():
        sizes.append((name, f"{name} bytes", formatting.size, [one.get("bytes") for one in own]))
        times.append((f"{name} ms", f"{name} ms", formatting.number, [one.get("milliseconds") for one in own]))
    return models, [*sizes, *(times if any(own["latency"] for own in every) else [])]


def _table(names: Iterable[str], columns: Sequence[Column]) -> Table:
    cells = [[formatting.NOTHING if one is None else show(one) for one in values] for _, _, show, values in columns]
    return ["model", *(column[0] for column in columns)], [list(row) for row in zip(names, *cells, strict=True)]


def _exact(value: float) -> str:
    return format(value, ".12g")
