"""Functions on the buffers of models. Clients and server do not exchange buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from heterofl_flwr.core.exchanged import frozen_parameters, sample
from heterofl_flwr.core.randomness import derive, kept_random_state
from heterofl_flwr.nn.execution import evaluating
from heterofl_flwr.nn.models import Build

_STEPS = 15  # number of power iterations; torch's parametrization starts with 15 too


@torch.no_grad()
def renew_spectral_norms(model: nn.Module) -> None:
    """For each layer with spectral norm, recompute the singular vectors by power iteration.

    The vectors belong to the largest singular value of the layer's weight, so they depend on the parameters alone.
    Both ``parametrizations.spectral_norm`` and ``torch.nn.utils.spectral_norm`` are supported.
    """
    for layer in model.modules():
        if isinstance(layer, ParametrizationList) and any(isinstance(step, _SpectralNorm) for step in layer):
            _renew(layer)
        for hook in _older_norms(layer):
            _start(getattr(layer, f"{hook.name}_u"))
            for _ in range(_STEPS):
                hook.compute_weight(layer, do_power_iteration=True)


def _older_norms(layer: nn.Module) -> list[SpectralNorm]:
    return [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]


def _renew(chain: ParametrizationList) -> None:
    """Recompute the singular vectors of the spectral norms in ``chain``, the parametrizations of one tensor.

    In training mode, a spectral norm runs power iterations in each call of ``chain``.
    """
    with evaluating(chain):  # in training mode, other parametrizations might use random numbers
        for parametrization in chain:
            # A one-dimensional tensor is normalised without singular vectors.
            if isinstance(parametrization, _SpectralNorm) and hasattr(parametrization, "_v"):
                _start(parametrization._v)
                parametrization.train()
        for _ in range(_STEPS):
            chain()


def _start(vector: Tensor) -> None:
    fixed = torch.Generator("cpu").manual_seed(0)
    vector.copy_(nn.functional.normalize(torch.randn(len(vector), generator=fixed, device="cpu"), dim=0))


def find_channel_tables(full_model: nn.Module, local: nn.Module) -> list[str]:
    """Return the names of buffers with different values along a sliced axis, such as position encodings.

    An axis is sliced if it is shorter in ``local`` than in ``full_model``. Statistics of norm layers and vectors of
    spectral norm are left out.
    """
    shapes = {name: buffer.shape for name, buffer in local.named_buffers()}
    renewed = _find_renewed(full_model)

    def tells_apart(buffer: Tensor, shape: torch.Size) -> bool:
        return any(
            local_length < length and not torch.equal(buffer, buffer.roll(1, axis))
            for axis, (length, local_length) in enumerate(zip(buffer.shape, shape, strict=True))
        )

    return [
        name
        for name, buffer in full_model.named_buffers()
        if name in shapes and id(buffer) not in renewed and tells_apart(buffer, shapes[name])
    ]


def _find_renewed(model: nn.Module) -> set[int]:
    """Return the ids of the tensors that clients compute anew: statistics of norm layers, those of spectral norm."""
    renewed: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, _NormBase | _SpectralNorm):
            renewed.update(map(id, layer.buffers()))
        for hook in _older_norms(layer):
            renewed.update(id(getattr(layer, hook.name + end)) for end in ("", "_u", "_v"))
    return renewed


def find_random_constants(model: nn.Module, build: Build, rate: float) -> list[str]:
    """Return the names of buffers and attributes with other values in another model of ``build``.

    Examples are random projections. ``model`` is a result of ``build(rate)``. Statistics of norm layers and vectors of
    spectral norm are left out.
    """
    renewed = _find_renewed(model)
    constants = {
        name: tensor for name, tensor in _constants(model).items() if id(tensor) not in renewed and not tensor.is_meta
    }
    if not constants:
        return []
    with kept_random_state(derive(0, "buffers")):
        others = _constants(build(rate))
    return [name for name, tensor in constants.items() if name in others and not _are_equal(tensor, others[name])]


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a model and the tensors in attributes that are not computed from parameters."""
    attributes = {
        f"{path}.{name}".lstrip("."): value
        for path, layer in model.named_modules()
        for name, value in vars(layer).items()
        if isinstance(value, Tensor) and not value.requires_grad
    }
    return {**attributes, **dict(model.named_buffers())}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def copy_unsent(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors in a model's ``state_dict`` that are not exchanged; of frozen parameters, samples.

    Statistics of norm layers and vectors of spectral norm are left out.
    """
    passing = {
        id(layer._buffers[name]) for layer in model.modules() for name in layer._non_persistent_buffers_set
    } | _find_renewed(model)
    buffers = {name: buffer for name, buffer in model.named_buffers() if id(buffer) not in passing}
    frozen = {name: sample(parameter) for name, parameter in frozen_parameters(model).items()}
    return {name: tensor.detach().clone() for name, tensor in {**buffers, **frozen}.items()}


def find_changed(model: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that have changed since ``copy_unsent`` returned ``before``."""
    samples = {name: sample(parameter) for name, parameter in model.named_parameters() if name in before}
    after = {**samples, **dict(model.named_buffers())}
    return [name for name in before.keys() & after.keys() if not _are_equal(before[name].to(after[name]), after[name])]


def find_other_values(full_model: nn.Module, local: nn.Module) -> list[str]:
    """Return the names of unsent tensors (``copy_unsent``) that have equal shapes in both models, and other values.

    Tensors of one element, such as a divisor that follows the rate, are left out.
    """
    shapes = {name: tensor.shape for name, tensor in local.state_dict().items() if tensor.numel() > 1}
    whole = {name for name, tensor in full_model.state_dict().items() if tensor.shape == shapes.get(name)}
    return find_changed(local, {name: tensor for name, tensor in copy_unsent(full_model).items() if name in whole})


def count_batches(model: nn.Module) -> dict[str, int]:
    """Return the number of batches in the running statistics of each batch norm layer, by the layer's name."""
    return {
        name: int(layer.num_batches_tracked)
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.num_batches_tracked is not None
    }


def find_frozen_norms(model: nn.Module, before: Mapping[str, int]) -> list[str]:
    """Return the names of batch norm layers in evaluation mode that have got no batch since ``count_batches``.

    ``before`` is the result of ``count_batches``.
    """
    after = count_batches(model)
    return [name for name in before if after.get(name) == before[name] and not model.get_submodule(name).training]
