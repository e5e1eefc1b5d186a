"""``heterofl export``: the final models of a run of our own app, as files that run without it."""

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heterofl_flwr.app.task import Task, load_task
from heterofl_flwr.core.formatting import render
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.export.export import BATCH, export_model
from heterofl_flwr.export.formats import formats_named
from heterofl_flwr.export.table import write_table
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.runs.models import load_model, model_facts
from heterofl_flwr.settings import SPECS
from heterofl_flwr.training.batches import read_tokens

RUNS = 100
"""Forward passes of which the latency is the median."""

CHECKED = 64
"""Examples of the test data that files are checked with."""


def run(args: argparse.Namespace) -> int:
    """Export the models, and print the table."""
    formats = [name.strip() for name in args.formats.split(",")]
    formats_named(formats)  # before anything is loaded
    models = RunModels(args.folder)
    names = models.chosen(args.level or ["all"])
    out = args.out or args.folder / "exports"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder, or none")
    for folder in models.export(names, out, formats=formats, runs=0 if args.no_latency else RUNS):
        print(f"{folder}: checked", flush=True)
    for heads, rows in write_table(out, f"The models of the run in `{args.folder.resolve().name}`."):
        print(f"\n{render(heads, rows, 'table')}\n")
    print(f"table: {out / 'table.csv'}")
    return 0


class RunModels:
    """The final models of a run of our own app, and the data to evaluate them on."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.settings = self._read_settings()
        self.facts = self._read_facts()

    def chosen(self, levels: Sequence[str]) -> list[str]:
        """Return the names of models: of levels, of rates, or of themselves; ``all`` is every one."""
        found: list[str] = []
        for level in levels:
            if not (own := [name for name, facts in self.facts.items() if _means(level, name, facts)]):
                known = ", ".join(f"{name} ({facts['rate']:g})" for name, facts in self.facts.items())
                raise ConfigError(f"--level {level}: the run has no such model; expected all, or some of {known}")
            found += own
        return [name for name in self.facts if name in found]

    def export(self, names: Sequence[str], out: Path, *, formats: Sequence[str], runs: int) -> Iterator[Path]:
        """Write each model into a folder of its name, and yield that."""
        root = str(self.settings.get("data.root", ""))
        if not root or not Path(root).is_dir():  # the run had its data elsewhere
            root = os.environ.get("HETEROFL_DATA", "")
        task = load_task({**self.settings, "data.root": root, "engine.device": "cpu"})
        deal = self.folder.deal()
        test = task.whole_test(len(deal.train) if deal else 0)
        inputs = checked_inputs(test, task.settings.seed)
        for name in names:
            facts = self.facts[name]
            model = load_model(self.folder, name, task.families[facts["family"]] if facts["family"] else task.build)
            export_model(
                model,
                inputs,
                out / name,
                formats=formats,
                dynamic={**BATCH, 1: "sequence"} if test.reading else BATCH,
                facts=self._manifest(task, facts, model, test),
                runs=runs,
            )
            yield out / name

    def _manifest(self, task: Task, facts: Mapping[str, Any], model: nn.Module, test: Split) -> dict[str, object]:
        """Return what a manifest says beside what every export says."""
        found = task.evaluate_centrally(model, test, facts["server_round"] or 0)
        metrics = {name.removeprefix("global-"): value for name, value in found.metrics("global").items()}
        return {
            **{key: facts[key] for key in ("level", "rate", "global_rate", "family", "server_round")},
            "metrics": {**metrics, "examples": found.examples},
            "data": task.settings.data.name,
            "classes": {"number": task.dataset.classes, "names": list(task.dataset.names) or None},
            "preprocessing": preprocessing(task.dataset),
            "trained": {"commit": self.folder.about()["commits"][-1], "mix": str(task.mix), "seed": task.settings.seed},
        }

    def _read_settings(self) -> Mapping[str, Any]:
        settings = self.folder.settings()
        if not settings or set(settings) - set(SPECS):
            raise ConfigError(
                f"the run in {self.folder.path} is of another app (its settings are {', '.join(settings) or 'none'}), "
                f"whose models are not known here: load them with heterofl_flwr.report.load_model, and call "
                f"heterofl_flwr.export.export_model"
            )
        return settings

    def _read_facts(self) -> dict[str, dict[str, Any]]:
        if found := model_facts(self.folder):
            return found
        strategy, shared = self.settings.get("server.strategy"), self.settings.get("server.shared")
        if strategy == "fedh2l" or shared not in (None, "*"):
            raise ConfigError(
                f"the clients of the run in {self.folder.path} keep parameters of their own (server.strategy="
                f"{strategy}, server.shared={shared}), so no level has one model to export: they are in clients/"
            )
        rounds = len(self.folder.history())
        raise ConfigError(
            f"the run in {self.folder.path} has no models yet: it has done {rounds} of {self.settings['num-rounds']} "
            f"rounds, and writes them at its end. Go on with it: heterofl run --resume "
            f"{shlex.quote(str(self.folder.path))}"
        )


def _means(level: str, name: str, facts: Mapping[str, Any]) -> bool:
    """Return whether what is asked for is this model; a rate may be written in any way, as 1, 1.0 or 2/2."""
    try:
        return bool(float(exact_rate(level)) == facts["rate"])
    except ConfigError:
        return level in ("all", name, facts["level"])


def checked_inputs(test: Split, seed: int) -> Tensor:
    """Return test examples as the model sees them."""
    if test.reading is None:
        return test.inputs[:CHECKED]
    pieces = read_tokens(test.inputs[:CHECKED], test.reading, torch.Generator().manual_seed(derive(seed, "hidden")))
    return next(iter(pieces))[0]


def preprocessing(dataset: Dataset) -> dict[str, object]:
    """Return what the user of a model has to do with an input before the model sees it."""
    if dataset.test.reading is not None:
        hidden = dataset.test.reading.hides_as
        says = f"words by number, as in classes; {hidden} stands for a hidden word to predict"
        return {"kind": "tokens", "says": says}
    if dataset.normal is None:
        return {"kind": "none", "says": f"as {dataset.name} gives its examples"}
    table = dataset.test.inputs.dim() == 2
    says = "(value - mean) / deviation" if table else "scale pixels to 0 to 1, then (pixel - mean) / deviation"
    columns = {"columns": list(dataset.columns)} if dataset.columns else {}
    says = f"{says}, for each {'column' if table else 'channel'}"
    return {"kind": "normalise", "says": says, **asdict(dataset.normal), **columns}
