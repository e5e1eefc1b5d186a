"""The model of a client: built from a message, cut from a larger one, put to evaluation, and read again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn

from heterofl_flwr.client.client_context import STAGES
from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters, fingerprint
from heterofl_flwr.core.layer_rules import untied
from heterofl_flwr.core.moving_slices import SliceFunction, SliceRule, make_slice_function, prefix
from heterofl_flwr.core.randomness import derive, initial_state
from heterofl_flwr.core.reply_checks import name_misfits
from heterofl_flwr.core.slice_plan import ALL, is_shared
from heterofl_flwr.nn.buffers import renew_spectral_norms
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import with_static_norm, without_statistics
from heterofl_flwr.transport import messages, packing


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


def seed_of(message: Message) -> int:
    """Return a seed that is a function of the run's seed, the round and the client."""
    config, keys = messages.read_config(message), (messages.SEED, messages.SERVER_ROUND, messages.PARTITION)
    seed, server_round, partition = (messages.read_value(config, key, int) for key in keys)
    return derive(seed, "client", server_round, partition)


def read_state(message: Message) -> dict[str, Tensor]:
    """Return the parameters that a message brings."""
    records = messages.array_records(message.content)
    if messages.ARRAYS not in records:
        raise ReplyError(f"{messages.SERVER} sent no {messages.ARRAYS} record")
    return packing.read_tensors(records[messages.ARRAYS])


def build_models(
    message: Message, build: Build, own: Mapping[str, Tensor] | None, seed_torch: bool
) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the message asks about, first its own, and its model, of the slice that is asked for."""
    config = messages.read_config(message)
    top = messages.read_value(config, messages.RATE, float)
    state: Mapping[str, Tensor] = read_state(message)
    if (shared := messages.read_shared(config)) != ALL:
        state = {**_personal_part(config, build, top, shared, own), **state}
    moments = messages.array_records(message.content).get(messages.MOMENTS)
    rules: tuple[SliceRule, ...] = get_args(SliceRule)
    seed, rule = seed_of(message), messages.read_choice(config, messages.SLICE_RULE, rules, "prefix")
    window = messages.read_optional(config, messages.WINDOW, int) or 1

    def build_one(rate: float) -> nn.Module:
        run_seed = messages.read_value(config, messages.SEED, int)
        function = make_slice_function(rule, seed=run_seed, server_round=window, rate=rate, partition=0)
        model = model_at(build, state, top, rate, function, config.get(messages.BASE))
        if message.metadata.message_type.startswith("evaluate"):
            known = None if moments is None else packing.unpack_moments(moments, rate)
            model = for_evaluation(model, known)
        if seed_torch:
            torch.manual_seed(seed)
        return model

    for rate in messages.read_rates(config):
        yield rate, build_one(rate)  # held by the caller alone


def check_kept(config: ConfigRecord, kept: Mapping[str, Tensor] | None, what: str) -> None:
    """Raise an error where a client has lost what it kept in this run, and would begin anew unnoticed."""
    if not kept and config.get(messages.TRAINED):
        raise ReplyError(
            f"this client has trained in this run, and {what} are not given: let it call submodel(message, build, "
            f"context=context) and reply(..., context=context), in training and in evaluation. A context ends with its "
            f"grid or Flower run: to resume a run, let each node's config name a folder (states-path) from the first "
            f"round on"
        )


def _personal_part(
    config: ConfigRecord, build: Build, rate: float, shared: Sequence[str], own: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Return a client's own parameters at a rate: what it kept, or that slice of the model that the run began with."""
    model = new_model(build, rate)
    expected = {name: one for name, one in exchanged_parameters(model).items() if not is_shared(name, shared)}
    if expected:
        check_kept(config, own, "the layers that stay with it (shared)")
    if own is None:
        top = messages.read_value(config, messages.GLOBAL_RATE, float)
        seed = messages.read_value(config, messages.SEED, int)
        own = plan_between(build, top, rate).extract(initial_state(build, top, seed))
    own = {name: tensor for name, tensor in own.items() if not name.startswith(STAGES)}
    kept = {name: tensor for name, tensor in untied(model, own).items() if not is_shared(name, shared)}
    if wrong := name_misfits(kept, expected):
        raise ReplyError(
            f"the parameters that this client kept do not fit its model at rate {rate:g} ({wrong}): a client keeps its "
            f"rate where not all parameters are shared, so the run's mix, seed or shared has changed, or they are "
            f"another client's; remove what it kept, or go back to the run that it is of"
        )
    return kept
