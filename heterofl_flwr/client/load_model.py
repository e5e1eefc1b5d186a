"""Models of a client: building, loading, and reading of the trained parameters."""

import logging
from collections.abc import Iterator, Mapping

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor, nn

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.named_tensors import entries_under, name_misfits
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters, fingerprint, untied
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.core.slice_rules import make_slice_function
from heterofl_flwr.nn.buffers import renew_spectral_norms
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import remove_statistics, set_static_norm
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import read_tensors, unpack_moments

logger = logging.getLogger(__name__)


def read_record(message: Message, name: str) -> dict[str, Tensor]:
    """Return the tensors of the message's record ``name``; {} without this record."""
    record = reading.find_record(message.content, name, ArrayRecord)
    return {} if record is None else read_tensors(record)


def load_models(
    instruction: Instruction,
    build: Build,
    state: Mapping[str, Tensor],
    message: Message,
) -> Iterator[tuple[float, nn.Module]]:
    """Build and load the models of an instruction; yield pairs (rate, model), the largest first.

    ``state`` has the parameters of the largest model. A smaller model gets slices of them. Tensors that the message has
    for the smaller model's rate, with names such as ``0.5/conv.weight``, replace the slices of the same parameters. In
    an evaluation, models are in evaluation mode.
    """
    moments = reading.find_record(message.content, messages.MOMENTS, ArrayRecord)
    level_tensors = read_record(message, messages.LEVELS)
    for rate in instruction.rates:
        model = new_model(build, rate, to_load=True)
        is_largest = rate == instruction.rate
        if is_largest and instruction.frozen_base and fingerprint(model) != instruction.frozen_base:
            raise ReplyError(
                "the frozen parameters of this node's model, which are not sent, differ from those of the "
                "server's model: let both load the same checkpoint, in float32 or bfloat16, and nothing random; or let "
                "build return heterofl_flwr.core.exchange_frozen(model)"
            )
        load_parameters(model, state if is_largest else _slice(instruction, build, rate, state, level_tensors))
        if instruction.is_evaluation:
            for_evaluation(model, None if moments is None else unpack_moments(moments, rate))
        yield rate, model
        del model  # keep no reference, so that the caller can free it


@torch.no_grad()
def load_parameters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into a model's exchanged parameters, and recompute its spectral norms."""
    parameters = exchanged_parameters(model)
    if misfits := name_misfits(state, parameters):
        raise ReplyError(
            f"{messages.SERVER} sent parameters that do not fit the model this node builds ({misfits}): give both the "
            f"same function from a rate to the model"
        )
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
    renew_spectral_norms(model)


def for_evaluation(model: nn.Module, moments: Moments | None) -> nn.Module:
    """Put a model into evaluation mode, in place; return the model.

    Batch norm uses ``moments``. If ``moments`` is None, batch norm uses the statistics of each batch.
    """
    # In a copy, a function that refers to the model would still compute with the layers of the original.
    return remove_statistics(model).eval() if moments is None else set_static_norm(model, moments)


def sent_tensor(parameter: Tensor) -> Tensor:
    """Return a CPU copy of a parameter, in float32 or wider."""
    return torch.empty(parameter.shape, dtype=exchanged_dtype(parameter)).copy_(parameter.detach())


def personal_state(instruction: Instruction, build: Build, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that stay with a client: those in ``saved`` or, if it is empty, initial values."""
    rate = instruction.rate
    model = new_model(build, rate)
    expected = {
        name: parameter for name, parameter in exchanged_parameters(model).items() if not instruction.travels(name)
    }
    if expected and not saved:
        check_not_lost(instruction, "the layers that stay with it (shared)")
    if not saved:
        initial = initial_state(build, instruction.global_rate, instruction.run_seed)
        saved = plan_between(build, instruction.global_rate, rate).extract(initial)
    state = {name: tensor for name, tensor in untied(model, saved).items() if not instruction.travels(name)}
    if misfits := name_misfits(state, expected):
        raise ReplyError(
            f"the parameters that this client kept do not fit its model at rate {rate:g} ({misfits}): a client must "
            f"keep its rate if not all parameters are shared. Either the run's mix, seed or shared has changed, or the "
            f"parameters are another client's: remove them, or continue the run that saved them"
        )
    return state


def check_not_lost(instruction: Instruction, tensors: str) -> None:
    """Raise ``ReplyError`` if a client without saved state has trained in this run: its state was lost.

    The caller has checked that there is no saved state. ``tensors`` names the lost tensors in the error message.
    """
    if instruction.has_trained:
        raise ReplyError(
            f"this client has trained in this run, and {tensors} are gone: a context ends with its grid or Flower run, "
            f"and has only the latest round's state. To resume a run, let each node's config name a folder "
            f"(states-path) from the first round on"
        )


def _slice(
    instruction: Instruction,
    build: Build,
    rate: float,
    state: Mapping[str, Tensor],
    level_tensors: Mapping[str, Tensor],
) -> Mapping[str, Tensor]:
    function = make_slice_function(
        instruction.slice_rule, seed=instruction.run_seed, server_round=instruction.window, rate=rate, partition=0
    )
    tensors = plan_between(build, instruction.rate, rate).sliced(function).extract(state)
    return {**tensors, **entries_under(f"{rate}/", level_tensors)}
