"""The channels-last memory format, in which convolutions on a CPU are faster."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from heterofl_flwr.nn.execution import save_state

T = TypeVar("T")


def in_channels_last(model: nn.Module, compute: Callable[[], T]) -> T:
    """Return ``compute()``, called while a model's convolution weights on a CPU are channels-last.

    They stay channels-first if ``suits_channels_last`` is False. If ``compute`` fails before a second forward pass, for
    example because ``Tensor.view`` needs channels-first activations or gradients, the model's state is restored and
    ``compute`` is called again with channels-first weights. At the end, the values are copied into the original
    tensors, so that other references to these tensors see them.
    """
    weights = [p for p in model.parameters() if p.dim() == 4 and p.device.type == "cpu" and p.is_contiguous()]
    takes_hooks = not isinstance(model, torch.jit.ScriptModule)
    if not (weights and takes_hooks and suits_channels_last(model)):
        return compute()
    restore, random_state, homes = save_state(model), torch.get_rng_state(), [weight.data for weight in weights]
    for weight in weights:
        # Not contiguous(memory_format=...): it leaves a weight with one input channel unchanged, because its strides
        # fit both layouts. The outputs of its layer and of all layers after it would then be channels first.
        weight.data = weight.data.to(memory_format=torch.channels_last)
    passes: list[bool] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(True) if len(passes) < 2 else None)
    try:
        return compute()
    except RuntimeError:
        if len(passes) > 1:
            raise
        restore()
        torch.set_rng_state(random_state)
    finally:
        hook.remove()
        for weight, home in zip(weights, homes, strict=True):
            weight.data = home.copy_(weight.data)
    return compute()


def suits_channels_last(model: nn.Module) -> bool:
    """Return True if channels-last convolutions of a model are safe and not slower on this processor.

    Instance norm copies its inputs to channels-first. Torch 2.14 has a bug on processors with AVX2 but without AVX512:
    the backward pass of a strided 1x1 convolution with fewer than eight input channels writes outside its memory.
    """
    if any(isinstance(layer, _InstanceNorm) for layer in model.modules()):
        return False
    fewest = min((parameter.shape[1] for parameter in model.parameters() if parameter.shape[2:] == (1, 1)), default=8)
    return fewest >= 8 or torch.backends.cpu.get_cpu_capability() != "AVX2"
