"""Static batch norm: trained without running statistics, evaluated with measured ones (section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.exchanged import copy_exchanged
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.moments import Moments, check_layers


def with_static_norm(model: nn.Module, moments: Moments) -> nn.Module:
    """Return a copy of the model, in evaluation mode, whose batch norm layers have the statistics in ``moments``.

    A batch norm layer with the count 0 in ``moments`` stays as it was; with the statistics of a new layer, it raises
    ``ConfigError`` if it is run in evaluation mode. Instance norm layers lose their running statistics.
    """
    return set_static_norm(copy_exchanged(model), moments)


def set_static_norm(model: nn.Module, moments: Moments) -> nn.Module:
    """Do in place what ``with_static_norm`` does to a copy; return the model."""
    remove_statistics(model, _InstanceNorm).eval()
    layers = batch_norms(model)
    check_layers(moments, {name: layer.num_features for name, layer in layers.items()})
    for name, layer in layers.items():
        if moments.layers[name].count:
            place = next(chain(layer.parameters(), model.parameters(), [torch.zeros(())]))
            mean, variance = moments.statistics(name)
            layer.track_running_stats = True
            layer.running_mean = mean.to(place)
            layer.running_var = variance.to(place)
            layer.num_batches_tracked = torch.tensor(moments.layers[name].count, device=place.device)
        elif layer.running_mean is not None:
            layer.register_forward_pre_hook(partial(_refuse_unreached, name))
    return model


def _refuse_unreached(name: str, layer: _NormBase, inputs: object) -> None:
    """Forward pre-hook of a layer without moments. A layer in training mode, or with statistics, needs none."""
    if not layer.training and layer.running_mean is not None and not is_measured(layer):
        raise ConfigError(
            f"batch norm layer {name} has no moments, because no batch reached it when they were measured: let the "
            f"model's forward run it on the batches of answer_queries(data=...) or collect_moments, or normalise each "
            f"batch by its own statistics (Evaluation(static_norm=False))"
        )


def remove_statistics(model: nn.Module, kind: type[_NormBase] = _NormBase) -> nn.Module:
    """Remove the running statistics of norm layers of type ``kind`` in place; return the model."""
    for layer in model.modules():
        if isinstance(layer, kind) and layer.running_mean is not None:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return model


def is_measured(layer: _NormBase) -> bool:
    """Return True if a layer has running statistics that differ from those of a new layer."""
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and not (bool((mean == 0).all()) and bool((variance == 1).all()))


@contextmanager
def refusing_unmeasured(where: str) -> Iterator[None]:
    """Context manager: raise ``ConfigError`` if a norm layer in evaluation mode uses its initial statistics."""
    checked = WeakSet[nn.Module]()

    def check(layer: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or layer.training or not isinstance(layer, _NormBase) or layer in checked:
            return
        checked.add(layer)
        if layer.running_mean is not None and not is_measured(layer):
            raise ConfigError(
                f"{where} evaluates {type(layer).__name__} with the statistics of a new model, because "
                f"statistics do not travel: measure moments = collect_moments(model, batches) on data of the server, "
                f"and evaluate with_static_norm(model, moments), both of heterofl_flwr.nn"
            )

    hook = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
