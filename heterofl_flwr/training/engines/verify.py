"""The proof that models computed together compute what each does alone."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.training.engines.joint import Joint, Layout, Stack
from heterofl_flwr.training.options import UnfitError

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far what is computed together may be from the same alone, relative to the norm of the latter."""


class _OthersError(UnfitError):
    """What is computed together has other values; by rounding, perhaps."""


def prove(
    way: type[Joint], models: Sequence[nn.Module], layouts: Sequence[Layout], stack: Stack, inputs: Sequence[Tensor]
) -> Joint:
    """Return what computes models together, once logits and gradients are as each model has them alone.

    The first and the last client are compared. Where values differ in float32, float64 decides: rounding seldom goes
    beyond 1e-5, but where it moves one value of many across a kink, as of ReLU, gradients differ by percents. With TF32
    on a GPU they mostly do.

    Parameters
    ----------
    way : type[Joint]
        How they are computed together.
    models : Sequence[nn.Module]
        The clients' models; neither their parameters nor their buffers change.
    layouts : Sequence[Layout]
        Of their parameters.
    stack : Stack
        The clients' values.
    inputs : Sequence[Tensor]
        A batch of each client, all of one shape.

    Raises
    ------
    UnfitError
        If they are others, or if the forward pass draws random numbers or changes a buffer: then the clients are not
        independent of each other.
    """
    joint = way(models[0], layouts, len(models))
    try:
        _check(joint, models, stack, inputs)
    except _OthersError:
        exact = [copy.deepcopy(model).double() for model in models]
        exact_inputs = [one.double() if one.is_floating_point() else one for one in inputs]
        _check(way(exact[0], layouts, len(models)), exact, stack.double(), exact_inputs)
    return joint


def _check(joint: Joint, models: Sequence[nn.Module], stack: Stack, inputs: Sequence[Tensor]) -> None:
    joint.place(stack)
    together = joint(inputs)
    gradients = joint.gradients(_probe(together))
    for client in {0, len(inputs) - 1}:
        values = {
            layout.name: layout.shaped(rows[client], layout.shape).detach().requires_grad_(layout.trained)
            for layout, rows in zip(joint.layouts, stack.values, strict=True)
        }
        logits = _alone(models[client], values, inputs[client])
        _compare("logits", [together[:, client]], [logits])
        trained = [value for value in values.values() if value.requires_grad]
        alone = torch.autograd.grad(_probe(logits[:, None]), trained, allow_unused=True)
        if [one is None for one in alone] != [one is None for one in gradients]:
            raise UnfitError("together, other parameters get gradients")
        _compare(
            "gradients",
            [one[client] for one in gradients if one is not None],
            [layout.rows(one, 1)[0] for layout, one in zip(joint.layouts, alone, strict=False) if one is not None],
        )


def _probe(logits: Tensor) -> Tensor:
    """Return a sum of logits (batch, clients, ...) in which each counts differently, but alike for each client."""
    first = logits[:, :1].detach()
    return (logits * torch.arange(first.numel(), device=first.device).cos().view_as(first)).sum()


def _alone(model: nn.Module, values: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Return a client's logits by the model itself, once it is sure that nothing but its parameters matters."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = _random_state(inputs.device)
    logits: Tensor = functional_call(model, {**values, **buffers}, (inputs,))
    if not torch.equal(before, _random_state(inputs.device)):
        raise UnfitError("the forward pass draws random numbers, for dropout perhaps")
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffers[name], buffer)]
    if changed:
        raise UnfitError(f"training changes the buffer {changed[0]}")
    return logits


def _random_state(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def _compare(what: str, together: Sequence[Tensor], alone: Sequence[Tensor]) -> None:
    """Compare tensors one by one; what is small against all of them, and may be rounding alone, counts with these."""
    if [one.shape for one in together] != [one.shape for one in alone]:
        raise UnfitError(f"together, {what} have another shape")
    norms = [one.norm() for one in alone]
    least = torch.stack(norms).max() / 10
    for one, other, norm in zip(together, alone, norms, strict=True):
        if not (one - other).norm() <= TOLERANCE[one.dtype] * norm.maximum(least):  # so written, NaN is refused
            raise _OthersError(f"together, {what} are others")
