"""Checks of the arguments that a user gives to ``Task``, and conversion of values for the reply."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from heterofl_flwr.client.load_model import sent_tensor
from heterofl_flwr.client.stages import StageRunner
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.label_rows import Labels, whole_numbers
from heterofl_flwr.transport import messages

logger = logging.getLogger(__name__)

Received = Callable[[], Mapping[str, Tensor]]
"""Function that returns the parameters in a message."""


class Contents(NamedTuple):
    """Contents of a reply: array records, config entries, metrics and number of examples."""

    records: Mapping[str, ArrayRecord]
    config: Mapping[str, object]
    metrics: Mapping[str, float | Sequence[float]]
    num_examples: int


def check_types(*arguments: tuple[str, object, type]) -> None:
    """Raise ``ConfigError`` if an argument, given by its name, value and type, has another type."""
    for name, value, expected in arguments:
        if not isinstance(value, expected):
            fault = f"{name} is a {type(value).__name__}, expected a {expected.__name__}"
            raise ConfigError(f"{fault}: check the order of the arguments")


def read_classes(labels: Iterable[int] | Mapping[str, Iterable[int]] | None) -> Labels | None:
    """Return a client's classes as integers; by head (output layer) if ``labels`` is a mapping."""
    if isinstance(labels, Mapping):
        return {head: whole_numbers(classes) for head, classes in labels.items()}
    return None if labels is None else whole_numbers(labels)


def labels_config(classes: Labels | None) -> dict[str, list[int]]:
    """Return a client's classes as entries of a config record."""
    if isinstance(classes, Mapping):
        return {f"{messages.HEAD_LABELS}{head}": list(numbers) for head, numbers in classes.items()}
    return {} if classes is None else {messages.LABELS: list(classes)}


def trained_tensors(
    parameters: Mapping[str, Tensor], received: Received, travels: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return copies of the parameters to send, in the dtypes in which they were received.

    A parameter is sent if ``travels`` is true for its name.
    """
    tensors = {}
    for name in filter(travels, parameters):
        dtype, expected = parameters[name].dtype, received()[name].dtype
        if dtype != expected:
            warn_once(f"parameters trained in {dtype} are sent in {expected}, the type that was received")
        tensors[name] = sent_tensor(parameters[name]).to(expected)
    return tensors


def warn_if_unchanged(tensors: Mapping[str, Tensor], received: Received) -> None:
    """Warn if all tensors equal the received tensors."""
    if tensors and all(torch.equal(tensor, received()[name]) for name, tensor in tensors.items()):
        warn_once(
            "this client's parameters are those that it received: nothing was trained. Make a new optimizer for each "
            "task.model(); one of an earlier round trains that round's model. With drop_last=True, fewer examples than "
            "batch_size give no batch: use smaller batches, or reply num_examples=0"
        )


def check_penalty(stages: StageRunner, proximal_mu: float) -> None:
    """Raise ``ConfigError`` if a stage has a penalty; warn if only FedProx has a penalty.

    Call this if the training loop added no penalty to the loss.
    """
    if not stages.penalty:
        return
    advice = "add task.penalty(model) to the loss of each batch"
    if names := stages.penalising:
        raise ConfigError(
            f"{', '.join(names)}: the strategy adds a penalty to the clients' loss, so {advice}; a client without a "
            f"batch (drop_last=True) replies num_examples=0"
        )
    warn_once(
        f"proximal_mu is {proximal_mu:g}, and the loss has no penalty: {advice}, or set task.penalty_used = True where "
        f"the loop adds it itself"
    )


@cache
def warn_once(text: str) -> None:
    """Log a warning; in one process each text is logged only once."""
    logger.warning("%s", text)
