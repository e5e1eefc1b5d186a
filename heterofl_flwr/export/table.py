"""What the models of a folder of exports cost and are worth, one row each."""

import json
from collections.abc import Callable, Mapping
from functools import partial
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
        try:
            found[path.parent.name] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}; export that model anew, or remove its folder"
            ) from error
    # The largest model of a family comes first.
    manifests = dict(sorted(found.items(), key=lambda item: (item[1].get("family", ""), -item[1]["parameters"])))
    if not manifests:
        raise ConfigError(f"{folder} holds no exports; expected folders with a {MANIFEST}")
    exact_models, exact_files = build_tables(manifests, exact=True)
    models, files = build_tables(manifests)
    csv = formatting.render(*_side_by_side(exact_models, exact_files), "csv")
    write_atomic(Path(folder) / CSV, f"{csv}\n".encode())
    latency = next((own["latency"] for own in manifests.values() if own["latency"]), None)
    page = _TEXT.format(
        about=about or "One training, several models.",
        table=formatting.render(*_side_by_side(models, files), "markdown"),
        latency=_LATENCY.format(**latency) if latency else "Latency was not measured.",
        tolerance=next(iter(manifests.values()))["check"]["tolerance"],
    )
    write_atomic(Path(folder) / PAGE, page.encode())
    return models, files


def build_tables(manifests: Mapping[str, Manifest], *, exact: bool = False) -> tuple[Table, Table]:
    """Return two tables, of models and of files: with all digits, or as people read numbers."""

    def cell(show: Callable[[Any], str], value: Any) -> str:
        return formatting.NOTHING if value is None else format(value, ".12g") if exact else show(value)

    every = list(manifests.values())
    score = next((one for one in _SCORES if any(one in own.get("metrics", {}) for own in every)), None)
    formats = list(dict.fromkeys(name for own in every for name in own["files"]))
    timed = formats if any(own["latency"] for own in every) else []
    models: Table = ["model", "rate", "parameters", "MACs", *([score] if score else [])], []
    files: Table = ["model", *(f"{name} bytes" if exact else name for name in formats), *(f"{x} ms" for x in timed)], []
    for name, own in manifests.items():
        row = [name, cell("{:.12g}".format, own.get("rate")), cell("{:,}".format, own["parameters"])]
        row.append(cell(formatting.count, own["macs"]))
        if score:
            row.append(cell(partial(formatting.score, score), own.get("metrics", {}).get(score)))
        models[1].append(row)
        held = own["files"]
        sizes = [cell(formatting.size, held.get(one, {}).get("bytes")) for one in formats]
        times = [cell(formatting.number, held.get(one, {}).get("milliseconds")) for one in timed]
        files[1].append([name, *sizes, *times])
    return models, files


def _side_by_side(one: Table, other: Table) -> Table:
    """Return two tables of the same models as one."""
    return [*one[0], *other[0][1:]], [[*row, *more[1:]] for row, more in zip(one[1], other[1], strict=True)]
