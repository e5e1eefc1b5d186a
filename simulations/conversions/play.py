"""Run one Flower app on this machine, without Ray and without the network, and write down what came of it.

``python -m simulations.conversions.play JOB`` is run in the app's folder by ``python -m simulations.conversions``.
"""

import hashlib
import importlib
import json
import random
import runpy
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.history import History
from flwr.serverapp.strategy import Result
from safetensors.torch import save_file
from torch.utils.data import RandomSampler

from heterofl_flwr import LocalGrid
from heterofl_flwr.core.randomness import derive
from simulations.conversions.stand_ins import StandIns

OUTCOME = "outcome.json"
MODEL = "arrays.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How to run an app."""

    nodes: int  # how many nodes there are
    # settings of the run that differ from those in `pyproject.toml`
    config: dict[str, bool | int | float | str] = field(default_factory=dict)
    # settings of each node, in which `{number}` stands for 1, 2 and so on
    node_config: dict[str, str] = field(default_factory=dict)
    # a script of the app that makes its data, and its arguments; nothing for none
    prepare: list[str] = field(default_factory=list)
    root: str = ""  # those of `StandIns`
    rows: int = 2000
    # whether each client begins with random numbers that follow from its partition and round, or with new ones
    repeatable: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of a run: metrics by name and round, the sizes that clients trained, what failed."""

    rounds: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    replies: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Shuffles:
    """Gives data loaders an order that follows from the client and its round alone, whatever else was drawn before."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        setattr(RandomSampler, "__iter__", lambda sampler: self.order(len(sampler.data_source)))  # noqa: B010

    def order(self, rows: int) -> Iterator[int]:
        return iter(self.random.sample(range(rows), rows))


class Watched(ClientApp):
    """A ClientApp that notes what goes through it, and sets the random state before each message."""

    def __init__(self, app: ClientApp, shuffles: Shuffles, *, repeatable: bool) -> None:
        super().__init__()
        self.app, self.shuffles, self.repeatable = app, shuffles, repeatable
        self.calls: Counter[tuple[str, int]] = Counter()
        self.sizes: set[int] = set()
        self.failures: list[str] = []
        self.replies: dict[str, str] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with what the app answers."""
        kind, partition = message.metadata.message_type, int(context.node_config["partition-id"])
        self.calls[kind, partition] += 1
        call = self.calls[kind, partition]
        _set_random_state(derive(0, kind, partition, call))
        self.shuffles.random.seed(derive(0, "shuffle", kind, partition, call))
        if not self.repeatable:
            torch.seed()
        if kind == "train" and (size := _parameters_in(message)):
            self.sizes.add(size)
        try:
            reply = self.app(message, context)
        except Exception as error:
            self.failures.append(f"{kind}: {type(error).__name__}: {error}".splitlines()[0])
            raise
        if kind == "train":
            self.replies[f"{partition}/{call}"] = _digest(reply)
        return reply


def play(job: Job) -> Outcome:
    """Run the app of the current folder."""
    stand_ins = StandIns(Path(job.root) if job.root else None, job.rows)
    stand_ins.install()
    records: list[Any] = []
    for kind in (Result, History):
        _keep(kind, records)
    if job.prepare:
        sys.argv = job.prepare
        runpy.run_path(job.prepare[0], run_name="__main__")
    described = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    config = {**described["config"], **job.config}
    _set_random_state(0)
    server, client = (_component(described["components"][name]) for name in ("serverapp", "clientapp"))
    watched = Watched(client, Shuffles(), repeatable=job.repeatable)

    def node_config(partition: int) -> dict[str, str]:
        return {key: value.format(number=partition + 1) for key, value in job.node_config.items()}

    with LocalGrid(watched, job.nodes, run_config=config, node_config=node_config) as grid:
        _set_random_state(0)
        server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), dict(config)))
    if isinstance(records[-1], Result):
        save_file(records[-1].arrays.to_torch_state_dict(), MODEL)
    metrics = metrics_of(records[-1])
    return Outcome(
        rounds=max((int(server_round) for values in metrics.values() for server_round in values), default=0),
        metrics=metrics,
        sizes=sorted(watched.sizes),
        failures=watched.failures,
        replies=watched.replies,
        notes=stand_ins.notes,
    )


def metrics_of(record: Result | History) -> dict[str, dict[str, float]]:
    """Return metrics by name and round; of one name, those of the server come first, then those of evaluation."""
    found: list[tuple[str, int, object]]
    if isinstance(record, Result):
        found = [
            (f"{place}/{name}", server_round, value)
            for place, rounds in (
                ("server", record.evaluate_metrics_serverapp),
                ("clients", record.evaluate_metrics_clientapp),
                ("train", record.train_metrics_clientapp),
            )
            for server_round, metrics in rounds.items()
            for name, value in metrics.items()
        ]
    else:
        series: dict[str, Sequence[tuple[int, object]]] = {
            "server/loss": record.losses_centralized,
            "clients/loss": record.losses_distributed,
            **{f"server/{name}": values for name, values in record.metrics_centralized.items()},
            **{f"clients/{name}": values for name, values in record.metrics_distributed.items()},
            **{f"train/{name}": values for name, values in record.metrics_distributed_fit.items()},
        }
        found = [(name, server_round, value) for name, values in series.items() for server_round, value in values]
    metrics: dict[str, dict[str, float]] = {}
    for name, server_round, value in found:
        if isinstance(value, int | float):
            metrics.setdefault(name, {})[str(server_round)] = float(value)
    return metrics


def _keep(kind: type, records: list[Any]) -> None:
    """Let what Flower writes its results in be kept when it is made."""
    real: Callable[..., None] = vars(kind)["__init__"]

    def made(record: Any, *values: Any, **named: Any) -> None:
        real(record, *values, **named)
        records.append(record)

    setattr(kind, "__init__", made)  # noqa: B010


def _set_random_state(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what the examples draw from


def _component(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _parameters_in(message: Message) -> int:
    """Return how many parameters a message brings."""
    return sum(array.numpy().size for record in message.content.array_records.values() for array in record.values())


def _digest(reply: Message) -> str:
    """Return what tells one reply's parameters from another's."""
    digest = hashlib.sha256()
    for record in reply.content.array_records.values():
        for array in record.values():
            digest.update(array.data)
    return digest.hexdigest()


def main(path: str) -> None:
    outcome = play(Job(**json.loads(Path(path).read_text(encoding="utf-8"))))
    Path(OUTCOME).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
