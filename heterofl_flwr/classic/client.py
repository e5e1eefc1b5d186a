"""What a ``NumPyClient`` calls around the user's own training loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from flwr.common import Context, NDArrays, Scalar
from torch import nn

from heterofl_flwr import messages
from heterofl_flwr.capability import read_capability
from heterofl_flwr.classic.arrays import moments_from_arrays, moments_to_arrays, name_arrays
from heterofl_flwr.client import Batches, first_tensor
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.local_model import for_evaluation, model_at
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms, collect_moments
from heterofl_flwr.training.distilled_loss import note_inner_widths


def submodel(
    parameters: NDArrays, config: Mapping[str, Scalar], build: Build, *, seed_torch: bool = False
) -> nn.Module:
    """Return the model at the instruction's rate with these parameters.

    To evaluate, batch norm gets the static moments that came, or normalises by batch where none did. ``seed_torch`` is
    that of ``heterofl_flwr.client.submodel``.
    """
    _check_config(config)
    rate, model = next(_build_models(parameters, config, build, [float(config[messages.RATE])], seed_torch))
    note_inner_widths(model, build, [smaller for smaller in _read_rates(config) if smaller < rate])
    return model


def models_to_evaluate(
    parameters: NDArrays, config: Mapping[str, Scalar], build: Build, *, seed_torch: bool = False
) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the instruction asks about and its model, as ``submodel`` returns it."""
    _check_config(config)
    yield from _build_models(parameters, config, build, _read_rates(config), seed_torch)


def asks_for_moments(config: Mapping[str, Scalar]) -> bool:
    """Whether an instruction to fit asks for static batch norm moments instead; see ``answer_moments``."""
    return config.get(messages.TASK) == messages.TASK_MOMENTS


def answer_moments(
    parameters: NDArrays,
    config: Mapping[str, Scalar],
    build: Build,
    batches: Callable[[], Batches],
    *,
    device: torch.device | str = "cpu",
) -> tuple[NDArrays, int, dict[str, Scalar]]:
    """Return what ``fit`` answers when it is asked for the static batch norm moments of this client's data.

    ``batches`` is called once for each rate and returns the training inputs, as in ``heterofl_flwr.client``, on
    ``device``.
    """
    kind = cast("Variant", config[messages.MOMENTS_KIND])
    moments = {
        rate: collect_moments(model.to(device), map(first_tensor, batches()), kind=kind)
        for rate, model in models_to_evaluate(parameters, config, build)
    }
    return moments_to_arrays(moments), 0, {}


def parameters_of(model: nn.Module) -> NDArrays:
    """Return a model's parameters in the order in which the strategy expects them."""
    return [own.detach().to("cpu", exchanged_dtype(own)).numpy() for own in exchanged_parameters(model).values()]


def labels_text(labels: Iterable[int]) -> str:
    """Return a client's classes as the text that travels in ``metrics["labels"]``."""
    return ",".join(str(label) for label in sorted({int(label) for label in labels}))


def properties_of(context: Context, *, moments: bool = False) -> dict[str, Scalar]:
    """Return what ``get_properties`` answers: level or rate and partition, from the node's own config.

    With ``moments=True`` the client says that its ``fit`` answers questions for static batch norm moments.
    """
    reported = cast("dict[str, Scalar]", read_capability(context))
    return {**reported, messages.MOMENTS: True} if moments else reported


def _build_models(
    parameters: NDArrays, config: Mapping[str, Scalar], build: Build, rates: Iterable[float], seed_torch: bool
) -> Iterator[tuple[float, nn.Module]]:
    top = float(config[messages.RATE])
    names = list(plan_between(build, top, top).axes)
    kind = config.get(messages.MOMENTS_KIND) if config.get(messages.TASK) == messages.TASK_EVALUATE else None
    own, more = (parameters, []) if kind is None else (parameters[: len(names)], parameters[len(names) :])
    state = name_arrays(names, own)
    moments: Mapping[float, Moments] = {}
    if kind is not None:
        layers = {rate: list(batch_norms(new_model(build, rate))) for rate in _read_rates(config)}
        moments = moments_from_arrays(more, cast("Variant", kind), layers)
    seed, *purpose = (int(config[key]) for key in (messages.SEED, messages.SERVER_ROUND, messages.PARTITION))
    for rate in rates:
        model = model_at(build, state, top, rate, base=config.get(messages.BASE))
        if config.get(messages.TASK) == messages.TASK_EVALUATE:
            model = for_evaluation(model, moments.get(rate))
        if seed_torch:
            torch.manual_seed(derive(seed, "client", *purpose))
        yield rate, model


def _check_config(config: Mapping[str, Scalar]) -> None:
    messages.check_schema(config)
    keys = (messages.RATE, messages.SEED, messages.SERVER_ROUND, messages.PARTITION)
    if missing := [key for key in keys if key not in config]:
        raise ReplyError(f"{messages.SERVER} sent an instruction without {', '.join(missing)}")


def _read_rates(config: Mapping[str, Scalar]) -> list[float]:
    return [float(rate) for rate in str(config.get(messages.RATES, config[messages.RATE])).split(",")]
