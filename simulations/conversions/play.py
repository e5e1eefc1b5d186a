"""Run one of Flower's examples on this machine, without Ray and without the network, and write down what came of it.

``python -m simulations.conversions`` runs it in the app's folder, in a process of its own.
"""

import json
import pkgutil
import random
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.server import History
from flwr.serverapp.strategy import Result
from torch.utils.data import RandomSampler

from heterofl_flwr import LocalGrid
from heterofl_flwr.app.launch.request import Request, read_app
from heterofl_flwr.core.randomness import derive
from simulations.conversions.examples import EXAMPLES, Example
from simulations.conversions.stand_ins import install
from simulations.conversions.trial import OUTCOME, Outcome


class Recorder(ClientApp):
    """A ClientApp that notes what goes through it, and sets the random state before each message."""

    def __init__(self, app: ClientApp, outcome: Outcome) -> None:
        super().__init__()
        self.app, self.outcome = app, outcome
        self.calls: Counter[tuple[str, int]] = Counter()
        self.shuffle = random.Random(0)
        # Loaders get an order that follows from the client and its round alone, whatever else was drawn before.
        setattr(RandomSampler, "__iter__", lambda sampler: self.order(len(sampler.data_source)))  # noqa: B010

    def order(self, rows: int) -> Iterator[int]:
        return iter(self.shuffle.sample(range(rows), rows))

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with what the app answers."""
        kind, partition = message.metadata.message_type, int(context.node_config["partition-id"])
        self.calls[kind, partition] += 1
        call = self.calls[kind, partition]
        _set_random_state(derive(0, kind, partition, call))
        self.shuffle.seed(derive(0, "shuffle", kind, partition, call))
        arrays = (array for record in message.content.array_records.values() for array in record.values())
        if kind == "train" and (size := sum(array.numpy().size for array in arrays)):
            self.outcome.sizes = sorted({*self.outcome.sizes, size})
        try:
            return self.app(message, context)
        except Exception as error:
            self.outcome.failures.append(f"{kind}: {type(error).__name__}: {error}".splitlines()[0])
            raise


def play(example: Example, root: str) -> Outcome:
    """Run the app of the current folder."""
    outcome = Outcome()
    install(Path(root) if root else None, example.rows, outcome.notes)
    records: list[Any] = []
    for kind in (Result, History):
        _keep(kind, records)
    if example.prepare:
        sys.argv = list(example.prepare)
        runpy.run_path(example.prepare[0], run_name="__main__")
    app = read_app(Request(config=example.config, out=Path(), clients=example.nodes, app=Path()))
    _set_random_state(0)
    server, client = map(pkgutil.resolve_name, (app.server, app.client))

    def node_config(partition: int) -> dict[str, str]:
        return {key: value.format(number=partition + 1) for key, value in example.node_config.items()}

    recorder = Recorder(client, outcome)
    with LocalGrid(recorder, example.nodes, run_config=app.config, node_config=node_config) as grid:
        _set_random_state(0)
        server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), dict(app.config)))
    for name, server_round, value in _values(records[-1]):
        if isinstance(value, int | float):
            outcome.metrics.setdefault(name, {})[str(server_round)] = float(value)
    return outcome


def _values(record: Any) -> Iterator[tuple[str, int, object]]:
    """Yield a metric's name, round and value; those of the server come first, then those of evaluation."""
    if isinstance(record, Result):
        of_server, of_clients = record.evaluate_metrics_serverapp, record.evaluate_metrics_clientapp
        for place, rounds in ("server", of_server), ("clients", of_clients), ("train", record.train_metrics_clientapp):
            for server_round, metrics in rounds.items():
                yield from ((f"{place}/{name}", server_round, value) for name, value in metrics.items())
        return
    yield from (("server/loss", *one) for one in record.losses_centralized)
    yield from (("clients/loss", *one) for one in record.losses_distributed)
    of_server, of_clients = record.metrics_centralized, record.metrics_distributed
    for place, series in ("server", of_server), ("clients", of_clients), ("train", record.metrics_distributed_fit):
        yield from ((f"{place}/{name}", *one) for name, values in series.items() for one in values)


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


def main(short: str, root: str) -> None:
    outcome = play(EXAMPLES[short], root)
    Path(OUTCOME).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
