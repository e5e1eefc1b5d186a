"""Measure the accuracy under attacks of clients, for each kind of mean.

Ten clients train on scikit-learn's digits, or on 2,000 images of MNIST with half the width and height, split iid. Zero,
one or two of them attack. These have the largest models, whose entries have the fewest other holders, as this is the
worst case. An accuracy is that of a level's model on the test set after the final round, with batch norm moments of the
training set, which are not attacked. Each run is a line in ``cells.jsonl`` of the output folder, and is not repeated.
"""

import argparse
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import client_app, server_app
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.client import Instruction
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.core.formatting import render
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Split, load_dataset
from heterofl_flwr.nn import collect_moments, with_static_norm
from heterofl_flwr.runs.origin import command
from heterofl_flwr.training import evaluate
from simulations.bench.measure import describe_machine
from simulations.program import Records, parser_of, quietly, run_cells, start, text_beside

CLIENTS, ROWS, SEEDS = 10, 2000, (0, 1, 2)
MIXES = ("a1", "a1-b1-c1-d1-e1", "a1-e9")

COMMON: Mapping[str, float | str] = {
    "model.name": "cnn",
    "model.hidden": "32,64,128",
    "model.norm": "sbn",
    "num-rounds": 8,
    "sample.fraction": 1.0,
    "sample.min-nodes": CLIENTS,
    "sample.min-replies": 1,
    "train.lr": 0.1,
    "train.milestones": "",
    "train.epochs": 1,
    "train.batch-size": 20,
    "evaluate.every": 0,
    "engine.device": "cpu",
}
"""Settings of all runs."""

BOUNDS = {"digits": 1.6, "mnist": 1.8}
"""Norm bound of each data set: a little above the largest change of a client without attacks."""

ROBUST = ("trimmed", "median")
KEEP = " and keep"
MEANS = ("mean", "norm bound", *ROBUST, *(f"{name}{KEEP}" for name in ROBUST))
"""Kinds of means; the final two are with ``server.robust-few=keep``."""

Attack = Callable[[Tensor, torch.Generator], Tensor]
ATTACKS: Mapping[str, Attack] = {
    "sign flip": lambda change, draw: -change,
    "scaling": lambda change, draw: 10 * change,
    "labels": lambda change, draw: change,  # the client is trained on labels 9 - y
    "noise": lambda change, draw: torch.randn(change.shape, generator=draw) * 10 * change.square().mean().sqrt(),
}
"""Functions of a client's change of a parameter that return the change that the attacker sends."""


@dataclass(frozen=True)
class Cell:
    data: str
    mix: str
    mean: str
    attack: str
    attackers: int
    seed: int

    def config(self) -> dict[str, float | str]:
        """Return the settings of the run."""
        own: dict[str, float | str] = {"data.name": self.data, "mix": self.mix, "seed": self.seed}
        own |= {"server.norm-bound": BOUNDS[self.data]} if self.mean == "norm bound" else {}
        name, keep, _ = self.mean.partition(KEEP)
        own |= {"server.robust": name, "server.robust-few": "keep" if keep else "mean"} if name in ROBUST else {}
        return {**COMMON, **own}


class HostileApp(client_app.CohortApp):
    """The package's ClientApp, with the first few clients as attackers."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell

    def __call__(self, message: Message, context: Context) -> Message:
        return self._lie(message, context, client_app.app(message, context))

    def train_cohort(  # type: ignore[override]  # a method, not a static one, because it needs the cell
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message]:
        replies = client_app.app.train_cohort(messages, contexts)
        return [self._lie(*each) for each in zip(messages, contexts, replies, strict=True)]

    def _lie(self, message: Message, context: Context, reply: Message) -> Message:
        partition = int(context.node_config["partition-id"])
        if message.metadata.message_type != "train" or partition >= self._cell.attackers:
            return reply
        before = message.content.array_records["arrays"].to_torch_state_dict()
        after = reply.content.array_records["arrays"].to_torch_state_dict()
        seed = derive(Instruction.of(message).seed, "attack")
        draw, attack = torch.Generator().manual_seed(seed), ATTACKS[self._cell.attack]
        said = {name: old + attack(after[name] - old, draw) for name, old in before.items()}
        reply.content["arrays"] = ArrayRecord(said)
        return reply


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell; return the accuracies of the largest and the smallest level, and the numbers of refused replies."""
    config = cell.config()
    workload = load_workload(config)
    prepare(workload, cell)
    records, data = Records(), workload.dataset
    strategy = server_app.make_strategy(workload, (records,))
    plan = strategy.federation.architecture.plan
    with LocalGrid(HostileApp(cell), CLIENTS, run_config=config, cohort=CLIENTS) as grid:
        state = strategy.start(grid, num_rounds=workload.settings.num_rounds).arrays.to_torch_state_dict()
    found = {
        end: accuracy(workload.build(rate), plan(rate).extract(state), data.train.inputs, data.test)
        for end, rate in (("largest", workload.mix.rates[0]), ("smallest", workload.mix.rates[-1]))
    }
    refused = [partition for record in records for partition in record.refused]
    honest = sum(partition >= cell.attackers for partition in refused)
    return {**found, "refused": len(refused), "honest_refused": honest}


def prepare(workload: Workload, cell: Cell) -> None:
    """Set the clients' data: the first rows, with wrong labels for attackers with the attack ``labels``."""
    whole = load_dataset(cell.data)
    workload.dataset = replace(whole, train=_small(whole.train), test=_small(whole.test))
    targets = workload.dataset.train.targets.clone()
    for partition in range(cell.attackers if cell.attack == "labels" else 0):
        own = workload.partitions(CLIENTS).train[partition]
        targets[own] = workload.dataset.classes - 1 - targets[own]
    workload.train = replace(workload.dataset.train, targets=targets)


def _small(split: Split) -> Split:
    """Return the first ``ROWS`` examples; images of 28 x 28 pixels are halved in width and height."""
    inputs = split.inputs[:ROWS]
    inputs = avg_pool2d(inputs, 2) if inputs.shape[-1] == 28 else inputs
    return replace(split, inputs=inputs, targets=split.targets[:ROWS])


def accuracy(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, test: Split) -> float:
    """Return a model's accuracy on ``test``, with batch norm moments of ``inputs``."""
    model.load_state_dict(state)
    moments = collect_moments(model, inputs.split(100), kind="fixed")
    return evaluate(with_static_norm(model, moments), test, seed=0).metrics("global")["global-accuracy"]


def cells(data: Sequence[str]) -> Iterator[Cell]:
    """Yield all cells, those of one seed before those of the next."""
    attacks = [("none", 0), *itertools.product(ATTACKS, (1, 2))]
    for name, seed, mix, mean, (attack, attackers) in itertools.product(data, SEEDS, MIXES, MEANS, attacks):
        if "-" in mix or KEEP not in mean:  # with a single level, no entry has few holders
            yield Cell(name, mix, mean, attack, attackers, seed)


def run(options: argparse.Namespace) -> int:
    """Run the cells that have no result yet, and write the tables."""
    found = run_cells(options.out / "cells.jsonl", list(cells(options.data)), run_cell)
    write_atomic(options.out / "robust.md", page(found).encode())
    return 0


def page(found: Mapping[Cell, Mapping[str, float]]) -> str:
    """Return the page with all tables."""
    seconds = sum(own["seconds"] for own in found.values())
    about = f"{describe_machine()}. {len(found)} runs, {seconds:.0f} seconds in all."
    parts = [text_beside(__file__, "robust.md").format(command=command(), about=about)]
    for data, mix in dict.fromkeys((cell.data, cell.mix) for cell in found):
        for end in ("largest", "smallest")[: 1 + ("-" in mix)]:
            own = {cell: one[end] for cell, one in found.items() if (cell.data, cell.mix) == (data, mix)}
            parts.append(f"## {data}, {mix}: the {end} level's model\n\n{table(own)}")
    return "\n".join(parts)


def table(found: Mapping[Cell, float]) -> str:
    """Return a table with a row for each kind of mean and a column for each attack."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, value in found.items():
        rows[cell.mean][f"{cell.attackers} {cell.attack}" if cell.attackers else "none"].append(100 * value)
    columns = list(dict.fromkeys(attack for own in rows.values() for attack in own))
    cells = [[mean, *(_spread(own[attack]) for attack in columns)] for mean, own in rows.items()]
    return render(["", *columns], cells, "markdown") + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.0f}..{max(values):.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("simulations.robust", __doc__)
    parser.add_argument("--data", nargs="+", choices=BOUNDS, default=list(BOUNDS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default="runs/robust", metavar="FOLDER", help="default: %(default)s")
    with quietly():
        return start(parser, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
