"""Updates: parameters that hold what adapters of earlier rounds have learned, for ``StackAggregator``."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.adapters.peft_layers import adapter_parameters
from heterofl_flwr.core.exchange import exclude_from_replies
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError, extra
from heterofl_flwr.nn.models import Build


def with_updates(build: Build) -> Build:
    """Return the function from a rate to a peft model whose adapted layers hold an update too.

    The update, ``lora_update`` beside ``lora_A`` and ``lora_B``, is what adapters of earlier rounds have learned, at
    first zeros. It is added to what the layer computes with the scaling of its adapter and takes as much memory as the
    layer's weight. The server sends it; clients do not train it, and do not return it. peft does not know of it: to
    use the model elsewhere, call ``merge_updates``.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the peft model, such as ``lora`` returns; the scaling of an adapter is the same at all rates.
    """
    return partial(_build, build)


def _build(build: Build, rate: float) -> nn.Module:
    with extra("lora"):
        from peft.tuners.lora import Embedding, Linear, LoraLayer

    model = build(rate)
    layers = {name: own for name, own in model.named_modules() if isinstance(own, LoraLayer) and own.scaling}
    for name, layer in layers.items():
        # DoRA divides by the norm of the weight and the adapter together: what is added behind it would not count.
        if not isinstance(layer, Linear | Embedding) or len(layer.lora_magnitude_vector):
            kind = f"{type(layer).__name__}{' with DoRA' if len(layer.lora_magnitude_vector) else ''}"
            raise UnsupportedLayerError(
                f"layer {name} is {kind}; expected adapters of linear layers and embeddings, without DoRA: leave the "
                f"others out of target_modules, or use another aggregator"
            )
        layer.lora_update = nn.ParameterDict({adapter: _zeros(layer) for adapter in layer.scaling})
        layer.register_forward_hook(_add_update)
    exclude_from_replies(model, [name for name, _ in model.named_parameters() if ".lora_update." in name])
    return model


@torch.no_grad()
def merge_updates(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model of ``with_updates``, with updates and adapters merged into the weights.

    ``merge_and_unload`` of peft leaves the updates out, and peft loads what ``save_pretrained`` wrote without them.
    """
    whole: Any = copy.deepcopy(model)
    layers = [own for own in whole.modules() if hasattr(own, "lora_update")]
    if not layers:
        raise ConfigError(f"merge_updates takes a model of with_updates, got {type(model).__name__} without updates")
    for layer in layers:
        for adapter in layer.active_adapters:
            update = layer.scaling[adapter] * layer.lora_update[adapter]
            turned = adapter in layer.lora_embedding_A or layer.fan_in_fan_out
            layer.get_base_layer().weight += update.mT if turned else update
    merged: nn.Module = whole.merge_and_unload()
    return merged


def _zeros(layer: Any) -> nn.Parameter:
    """Return an update of zeros, (outputs, inputs), with the type and on the device of the adapter."""
    own = next(iter(adapter_parameters(layer).values()))
    return nn.Parameter(own.new_zeros(layer.out_features, layer.in_features), requires_grad=False)


def _add_update(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the updates of the active adapters to what a layer computes."""
    for adapter in [] if layer.disable_adapters else layer.active_adapters:
        update, given = layer.lora_update[adapter], inputs[0]
        if adapter in layer.lora_embedding_A:
            scale = getattr(layer.get_base_layer(), "embed_scale", 1.0)  # by which an embedding may scale its output
            added = F.embedding(given, update.mT) * scale
        else:
            added = F.linear(given.to(update.dtype), update)
        output = output + (layer.scaling[adapter] * added).to(output.dtype)
    return output
