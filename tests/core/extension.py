"""A smaller model written into a global one of zeros: what a slice must compute the same as."""

import torch
from torch import nn

from heterofl_flwr.core import Plan


def origins(plan: Plan, full: nn.Module) -> dict[str, torch.Tensor]:
    """Return for each entry of each local parameter its flat position in the global parameter."""
    numbered = {
        name: torch.arange(parameter.numel()).view(parameter.shape)
        for name, parameter in full.named_parameters(remove_duplicate=False)
    }
    return plan.extract(numbered)


@torch.no_grad()
def zero_extend(plan: Plan, full: nn.Module, local: nn.Module) -> None:
    """Set every parameter of ``full`` to zero, except for the entries that ``local`` holds."""
    places = origins(plan, full)
    kept = dict(local.named_parameters(remove_duplicate=False))
    for name, parameter in full.named_parameters(remove_duplicate=False):
        parameter.zero_()
        if name in kept:
            parameter.view(-1)[places[name].flatten()] = kept[name].flatten()


def spread(local: torch.Tensor, axis: int, full: int, places) -> torch.Tensor:
    """Return zeros of length ``full`` along an axis, with the local tensor at the given places."""
    shape = list(local.shape)
    shape[axis] = full
    return torch.zeros(shape, dtype=local.dtype).index_copy_(axis, torch.tensor(places), local)
