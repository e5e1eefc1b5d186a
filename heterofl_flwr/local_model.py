"""The model of a client: cut from a larger one, loaded, put to evaluation, and read again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterofl_flwr import messages
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters, fingerprint
from heterofl_flwr.core.reply_checks import name_misfits
from heterofl_flwr.core.slice_rules import SliceFunction, prefix
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.nn.buffers import renew_spectral_norms
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import with_static_norm, without_statistics


def model_at(
    build: Build,
    state: Mapping[str, Tensor],
    top: float,
    rate: float,
    function: SliceFunction = prefix,
    base: object = None,
) -> nn.Module:
    """Return the model of a rate with parameters cut from a state of rate ``top``.

    ``base`` is the fingerprint of what the server's model of rate ``top`` has and does not send.
    """
    model = new_model(build, rate)
    if base and rate == top and fingerprint(model) != base:
        raise ReplyError(
            "the frozen parameters of this node's model, which are not sent, are others than those of the server's: "
            "let both load the same checkpoint, in float32 or bfloat16, and nothing random"
        )
    load_parameters(model, state if rate == top else plan_between(build, top, rate).sliced(function).extract(state))
    return model


def for_evaluation(model: nn.Module, moments: Moments | None) -> nn.Module:
    """Return the model in evaluation mode; its batch norm uses these moments or, without any, those of each batch."""
    if moments is not None:
        return with_static_norm(model, moments)
    return without_statistics(model).eval()


@torch.no_grad()
def load_parameters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the exchanged parameters into a model; buffers stay, but for the vectors of spectral norm.

    Refuse what does not fit, naming it.
    """
    own = exchanged_parameters(model)
    if wrong := name_misfits(state, own):
        raise ReplyError(
            f"{messages.SERVER} sent parameters that do not fit the model this node builds ({wrong}): give both the "
            f"same function from a rate to the model"
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])
    renew_spectral_norms(model)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters as they travel."""
    return {name: own.detach().to("cpu", exchanged_dtype(own)) for name, own in exchanged_parameters(model).items()}
