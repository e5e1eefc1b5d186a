"""Checks of a model's buffers and frozen parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.exchanged import exchanged_parameters, frozen_parameters
from heterofl_flwr.core.moving_slices import SliceRule
from heterofl_flwr.nn.buffers import find_channel_tables


def check_moving(rule: SliceRule, model: nn.Module, local: nn.Module, rate: float) -> None:
    """Raise ``ConfigError`` if slices cannot move: a buffer has values by channel, or a frozen parameter is cut."""
    if tables := find_channel_tables(model, local):
        raise ConfigError(
            f"slice_rule is {rule!r}, but the model's buffers {', '.join(tables[:5])} "
            f"have entries by channel, of which build({rate:g}) holds the first: they are not sent, so a client "
            f"would train other channels with them. Expected slice_rule='prefix', or in place of the buffer a "
            f"parameter, torch.nn.Parameter(...), which is cut as the others"
        )
    parameters, part = frozen_parameters(model), frozen_parameters(local)
    if cut := [name for name, parameter in part.items() if parameter.shape != parameters[name].shape]:
        raise ConfigError(
            f"slice_rule is {rule!r}, but the frozen parameters {', '.join(cut[:5])} "
            f"are not sent, and build({rate:g}) holds the first of their entries. Expected slice_rule='prefix', or "
            f"a build that returns heterofl_flwr.core.exchange_frozen(model)"
        )


def equals(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether the parameters of ``model`` equal those in ``state``."""
    parameters = exchanged_parameters(model)
    return bool(state) and all(torch.equal(tensor, parameters[name].to(tensor)) for name, tensor in state.items())
