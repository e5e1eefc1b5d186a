"""``heterofl export``: the final models of a run of our own app, as files that run without it."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.app.task import load_task
from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.export.export import BATCH, export_model
from heterofl_flwr.export.formats import formats_named
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.runs.models import load_model, model_facts
from heterofl_flwr.settings import from_stored
from heterofl_flwr.training.batches import read_tokens

PAGE = "README.md"

COMPARED = 64
"""Examples of the test data on which files are compared with the model."""

TEXT = """\
# The models of the run in `{name}`

{table}

Scores are of the run's whole test set. {inputs}
"""


def run(args: argparse.Namespace) -> int:
    """Export the models, and print the table."""
    formats = list(formats_named([name.strip() for name in args.formats.split(",")]))  # before anything is loaded
    folder = RunFolder(args.folder)
    settings, known = _read_settings(folder), _read_models(folder)
    names = models_of(known, args.level or ["all"])
    out = args.out or args.folder / "exports"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder, or none")
    root = str(settings.get("data.root", ""))
    moved = {} if root and Path(root).is_dir() else {"data.root": os.environ.get("HETEROFL_DATA", "")}
    task = load_task({**settings, **moved, "engine.device": "cpu"})
    test = task.whole_test(folder.about().get("clients") or 0)
    inputs, axes = inputs_of(test, task.settings.seed), {**BATCH, 1: "sequence"} if test.reading else BATCH
    kind, rows = "perplexity" if test.reading else "accuracy", []
    for name in names:
        facts = known[name]
        model = load_model(folder, name, task.build)
        sizes = export_model(model, inputs, out / name, formats=formats, dynamic=axes)
        print(f"{out / name}: compared", flush=True)
        score = task.evaluate_centrally(model, test, facts["server_round"] or 0).metrics("global")[f"global-{kind}"]
        shown = [f"{facts['rate']:g}", f"{facts['parameters']:,}", formatting.score(kind, score)]
        rows.append([name, *shown, *map(formatting.size, sizes.values())])
    heads = ["model", "rate", "parameters", kind, *formats]
    table, run_name = formatting.render(heads, rows, "markdown"), args.folder.resolve().name
    write_atomic(out / PAGE, TEXT.format(name=run_name, table=table, inputs=preparation(task.dataset)).encode())
    print(f"\n{formatting.render(heads, rows, 'table')}\n\ntable: {out / PAGE}")
    return 0


def models_of(known: Mapping[str, Mapping[str, Any]], levels: Sequence[str]) -> list[str]:
    """Return the levels that are meant, by their names or rates; ``all`` is every one."""
    found: list[str] = []
    for level in levels:
        if not (own := [name for name, facts in known.items() if _means(level, facts)]):
            expected = ", ".join(f"{name} ({facts['rate']:g})" for name, facts in known.items())
            raise ConfigError(f"--level {level}: the run has no such model; expected all, or some of {expected}")
        found += own
    return [name for name in known if name in found]


def _means(level: str, facts: Mapping[str, Any]) -> bool:
    """Return whether what is asked for is this model; a rate may be written in any way, as 1, 1.0 or 2/2."""
    try:
        return bool(float(exact_rate(level)) == facts["rate"])
    except ConfigError:
        return level in ("all", facts["level"])


def _read_settings(folder: RunFolder) -> Mapping[str, Any]:
    settings = folder.settings()
    if not settings:
        raise ConfigError(
            f"the run in {folder.path} has no settings, so it is of another app, whose models are not known here: load "
            f"them with heterofl_flwr.report.load_model, and call heterofl_flwr.export.export_model"
        )
    from_stored(settings)  # names those that this version does not have
    return settings


def _read_models(folder: RunFolder) -> dict[str, dict[str, Any]]:
    if found := model_facts(folder):
        return found
    settings = folder.settings()
    strategy, shared = settings.get("server.strategy"), settings.get("server.shared")
    if strategy == "fedh2l" or shared not in (None, "*"):
        raise ConfigError(
            f"the clients of the run in {folder.path} keep parameters of their own (server.strategy={strategy}, "
            f"server.shared={shared}), so no level has one model to export: they are in clients/"
        )
    raise ConfigError(
        f"the run in {folder.path} has no models yet: it has done {len(folder.history())} of {settings['num-rounds']} "
        f"rounds, and writes them at its end. Go on with it: heterofl run --resume {shlex.quote(str(folder.path))}"
    )


def inputs_of(test: Split, seed: int) -> Tensor:
    """Return test examples as the model sees them."""
    if test.reading is None:
        return test.inputs[:COMPARED]
    pieces = read_tokens(test.inputs[:COMPARED], test.reading, torch.Generator().manual_seed(derive(seed, "hidden")))
    return next(iter(pieces))[0]


def preparation(dataset: Dataset) -> str:
    """Return what the user of a model has to do with an input before the model sees it, and what it then says."""
    if dataset.test.reading is not None:
        hidden = dataset.test.reading.hides_as
        return f"Inputs are words by number (the `names` of the data set); {hidden} is a hidden word to predict."
    names = ", ".join(dataset.names) if dataset.names else f"0 to {dataset.classes - 1}"
    if dataset.normal is None:
        return f"Inputs are as {dataset.name} gives them. Classes: {names}."
    table = dataset.test.inputs.dim() == 2
    says = "(value - mean) / deviation" if table else "pixels scaled to 0 to 1, then (pixel - mean) / deviation"
    columns = f" ({', '.join(dataset.columns)})" if dataset.columns else ""
    means, deviations = (
        ", ".join(f"{one:.9g}" for one in own) for own in (dataset.normal.mean, dataset.normal.deviation)
    )
    return (
        f"Inputs are {says}, for each {'column' if table else 'channel'}{columns}: mean {means}; deviation "
        f"{deviations}. Classes: {names}."
    )
