"""What a ``NumPyClient`` calls around the user's own training loop: ``heterofl_flwr.client``, translated."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from flwr.app import ConfigRecord, Message
from flwr.common import Context, NDArrays, Scalar, parameters_to_ndarrays
from torch import nn

from heterofl_flwr import client
from heterofl_flwr.classic.translation import from_scalars, moment_names, record_parameters, to_message
from heterofl_flwr.client.client_context import keep_part
from heterofl_flwr.client.local_model import parameters_of as named_parameters
from heterofl_flwr.client.node_config import read_capability
from heterofl_flwr.core.reply_checks import whole_numbers
from heterofl_flwr.core.slice_plan import is_shared
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.models import Build
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.compat import some_identity


def submodel(
    parameters: NDArrays,
    config: Mapping[str, Scalar],
    build: Build,
    *,
    context: Context | None = None,
    seed_torch: bool = False,
) -> nn.Module:
    """Return the model at the instruction's rate with these parameters.

    To evaluate, batch norm gets the static moments that came, or normalises by batch where none did. ``context`` and
    ``seed_torch`` are those of ``heterofl_flwr.client.submodel``.
    """
    return client.submodel(_instruction(parameters, config, build), build, context=context, seed_torch=seed_torch)


def models_to_evaluate(
    parameters: NDArrays,
    config: Mapping[str, Scalar],
    build: Build,
    *,
    context: Context | None = None,
    seed_torch: bool = False,
) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the instruction asks about and its model, as ``submodel`` returns it."""
    message = _instruction(parameters, config, build)
    yield from client.models_to_evaluate(message, build, context=context, seed_torch=seed_torch)


def asks_for_moments(config: Mapping[str, Scalar]) -> bool:
    """Whether an instruction to fit asks for static batch norm moments instead; see ``answer_moments``."""
    return config.get(messages.TASK) == messages.TASK_MOMENTS


def answer_moments(
    parameters: NDArrays,
    config: Mapping[str, Scalar],
    build: Build,
    batches: Callable[[], client.Batches],
    *,
    device: torch.device | str = "cpu",
) -> tuple[NDArrays, int, dict[str, Scalar]]:
    """Return what ``fit`` answers when it is asked for the static batch norm moments of this client's data.

    ``batches`` is called once for each rate and returns the training inputs, as in ``heterofl_flwr.client``, on
    ``device``.
    """
    reply = client.answer_moments(_instruction(parameters, config, build), build, batches, device)
    return parameters_to_ndarrays(record_parameters(messages.array_records(reply.content)[messages.MOMENTS])), 0, {}


def parameters_of(
    model: nn.Module, config: Mapping[str, Scalar] | None = None, *, context: Context | None = None
) -> NDArrays:
    """Return a model's parameters in the order in which the strategy expects them.

    Where the strategy shares only some (``HeteroFL(shared=...)``), give the instruction's config, and the client's
    context, which keeps the others for ``submodel``.
    """
    instructed = from_scalars(config) if config else ConfigRecord()
    shared = messages.read_shared(instructed)
    tensors = named_parameters(model)
    if context is not None and (own := {name: tensors[name] for name in tensors if not is_shared(name, shared)}):
        keep_part(context, instructed, own)
    return [tensor.numpy() for name, tensor in tensors.items() if is_shared(name, shared)]


def labels_text(labels: Iterable[int]) -> str:
    """Return a client's classes as the text that travels in ``metrics["labels"]``."""
    return ",".join(map(str, whole_numbers(labels)))


def properties_of(context: Context, *, moments: bool = False) -> dict[str, Scalar]:
    """Return what ``get_properties`` answers: level or rate and partition, from the node's own config.

    With ``moments=True`` the client says that its ``fit`` answers questions for static batch norm moments.
    """
    reported = cast("dict[str, Scalar]", read_capability(context))
    return {**reported, messages.MOMENTS: True} if moments else reported


def _instruction(parameters: NDArrays, told: Mapping[str, Scalar], build: Build) -> Message:
    config = from_scalars(told)
    rate, shared = messages.read_value(config, messages.RATE, float), messages.read_shared(config)
    names = [name for name in plan_between(build, rate, rate).axes if is_shared(name, shared)]
    moments: list[str] = []
    if config.get(messages.TASK) == messages.TASK_EVALUATE and messages.MOMENTS_KIND in config:
        layers = {own: batch_norms(new_model(build, own)) for own in messages.read_rates(config)}
        moments = moment_names(str(config[messages.MOMENTS_KIND]), layers)
    with some_identity():
        return to_message(config, parameters, names, moments)
