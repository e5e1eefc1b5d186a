"""Evaluation on the server, and the callbacks of a run."""

import logging
from collections.abc import Sequence
from inspect import signature
from typing import cast

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from heterofl_flwr.app.workload import Workload
from heterofl_flwr.client.load_model import for_evaluation, load_parameters
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.report import Costs, MLflow, Monitor, Recorder, RunFolder, TensorBoard, WandB
from heterofl_flwr.runs.class_counts import count_pairs, write_counts
from heterofl_flwr.settings.validate import to_flat
from heterofl_flwr.strategies.start import FederationStrategy
from heterofl_flwr.training.device import give_back_freed_memory, give_back_gaps, keep_freed_memory
from heterofl_flwr.transport.arrays import read_tensors

logger = logging.getLogger(__name__)

PROJECT = "heterofl-flwr"

NAMES = ("tensorboard", "wandb", "mlflow")
"""Names of this package's callbacks in ``run.callbacks``."""


def evaluate_global(
    strategy: FederationStrategy, workload: Workload, folder: RunFolder | None, server_round: int, arrays: ArrayRecord
) -> MetricRecord | None:
    """Return the global model's metrics on the test set; None in round 0, or if no client measured its batch norm.

    The confusion matrix is written into ``folder``, unless ``folder`` is None or the data are text.
    """
    if not server_round:
        return None
    rate = workload.mix.global_rate
    model, moments = new_model(workload.build, rate), strategy.moments.get(rate)
    if moments is None and batch_norms(model):
        logger.warning(
            "round %d: the server does not evaluate the global model, because no client that can hold rate %g measured "
            "the moments of its batch norm",
            server_round,
            rate,
        )
        return None
    load_parameters(model, read_tensors(arrays, "the server"))
    model = for_evaluation(model, moments).to(workload.device)
    test = workload.whole_test(strategy.federation.nodes.dealt())
    predicted: list[Tensor] = []
    if folder is not None and test.reading is None:
        model.register_forward_hook(lambda module, inputs, outputs: predicted.append(outputs.argmax(1)))
    keep_freed_memory()  # else a third of the time of WikiText2 is the system's
    result = workload.evaluate_centrally(model, test, server_round)
    give_back_freed_memory()
    give_back_gaps()
    if folder is not None and predicted:
        number = len(names := workload.dataset.class_names)
        confusion = count_pairs(test.targets, torch.cat(predicted), (number, number))
        write_counts(folder, names=names, confusion=confusion, server_round=server_round)
    return MetricRecord(dict(result.metrics("global")))


def build_callbacks(workload: Workload, folder: RunFolder | None) -> list[RoundCallback]:
    """Return ``Monitor`` (if ``run.metrics-address`` is set), ``Recorder`` and the callbacks in ``run.callbacks``.

    If ``folder`` is None, ``Recorder`` and ``TensorBoard`` are left out.
    """
    settings, run = workload.settings, workload.settings.run
    check_names(run.callbacks)
    callbacks: list[RoundCallback] = []
    if run.metrics_address:  # first: an address in use ends the run before Recorder changes the folder
        callbacks.append(Monitor(run.metrics_address, timeout=settings.engine.timeout, wait=settings.sample.wait))
    if folder is not None:
        # Models of FedH2L have no levels and are not sent.
        has_global = settings.server.strategy != "fedh2l"
        costs = Costs(workload.build, workload.mix, workload.example()) if has_global else None
        callbacks.append(Recorder(folder, run.checkpoint_every, costs=costs))
    # Without a folder, tensorboard (the default) cannot write.
    names = [name for name in run.callbacks if folder is not None or name != "tensorboard"]
    return callbacks + [_build_callback(name, workload, folder) for name in names]


def check_names(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless each name is in ``NAMES`` or a loadable ``module:name``."""
    for name in names:
        if ":" in name:
            load_function(name, "run.callbacks")
        elif name not in NAMES:
            raise ConfigError(f"run.callbacks names {name!r}; expected {', '.join(NAMES)} or 'module:name'")


def _build_callback(name: str, workload: Workload, folder: RunFolder | None) -> RoundCallback:
    if ":" in name:
        create = load_function(name, "run.callbacks")
        options = {"folder": folder} if "folder" in signature(create).parameters else {}
        return cast("RoundCallback", create(**options))
    if name == "tensorboard" and folder is not None:
        return TensorBoard(folder)
    settings = to_flat(workload.settings)
    own_name = folder.path.resolve().name if folder else None
    if name == "wandb":
        return WandB(PROJECT, settings=settings, folder=folder, name=own_name)
    return MLflow(PROJECT, settings=settings, folder=folder, run_name=own_name)
