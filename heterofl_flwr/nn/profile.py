"""What a model costs: parameters, multiplications, and what the paper prints as FLOPs and space."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from heterofl_flwr.core.exchanged import copy_exchanged
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.execution import call, device_of
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.static_norm import batch_norms

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Profile:
    """The cost of one model.

    Attributes
    ----------
    parameters
        Number of parameters.
    macs
        Multiplications (with addition) of one forward pass: convolutions, matrix and attention products.
    printed_flops
        What the paper prints as FLOPs: the operations of each convolution, linear layer and norm, times the number
        of its named parameters, so that a layer with a bias counts twice. Attention products, GroupNorm, pooling,
        activations and embeddings count nothing.
    megabytes
        Parameters in float32, in units of 1024 * 1024 bytes.
    """

    parameters: int
    macs: int
    printed_flops: int
    megabytes: float


@dataclass(frozen=True, slots=True)
class MixProfile:
    """The mean cost per client of a mix; ``ratio`` is the mean of parameters over those of the global model."""

    parameters: float
    macs: float
    printed_flops: float
    megabytes: float
    ratio: float


_UNKNOWN_TO_TORCH: Mapping[object, Callable[..., int]] = {
    aten.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
    aten.dot: lambda vector, *_, **__: 2 * vector.numel(),
    aten.addmv: lambda _, matrix, *__, **___: 2 * matrix.numel(),
    # One layer of an LSTM on a CPU, in one direction; x is (time, batch, features).
    aten.mkldnn_rnn_layer: lambda x, of_x, of_hidden, *_, **__: (
        2 * math.prod(x.shape[:-1]) * (of_x.numel() + of_hidden.numel())
    ),
    # A mixture of experts: each row of x is multiplied by the matrix of one expert.
    aten._grouped_mm: lambda x, *_, out_val, **__: 2 * out_val.numel() * x.shape[-1],
    # nn.Bilinear: for each output, (outputs, first, second), the first input times a matrix, and that times the second.
    aten._trilinear: lambda x, weight, y, *_, **__: 2 * len(x) * (weight.numel() + len(weight) * y.shape[-1]),
}
"""The floating point operations of operators of which torch's registry says nothing."""


class _Counter(TorchDispatchMode):
    """Counts floating point operations as torch's ``FlopCounterMode`` does, which loads a compiler for seconds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # brings triton, which no client needs to start

        self.flops = 0
        self._registry = {**_UNKNOWN_TO_TORCH, **flop_registry}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave ``__torch_dispatch__`` as it is; torch would load the compiler to keep it out."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count = self._registry.get(func._overloadpacket)
        if count is None:
            with self:  # what it is made of may be known
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


def profile(model: nn.Module, example_input: object) -> Profile:
    """Return what a forward pass of the model on ``example_input`` costs: a tensor, a tuple or a mapping of several.

    The pass runs on the model's device; on ``torch.device("meta")`` nothing is computed. The model is not changed.
    """
    device = device_of(model)
    probe = copy_exchanged(model).eval()
    for norm in batch_norms(probe).values():
        # Without running statistics a batch of one would be refused wherever an image has shrunk to one pixel.
        if norm.running_mean is None:
            norm.running_mean = torch.zeros(norm.num_features, device=device)
            norm.running_var = torch.ones(norm.num_features, device=device)
    printed: dict[nn.Module, int] = {}

    def record(layer: nn.Module, args: tuple[torch.Tensor, ...], out: object) -> None:
        if isinstance(out, torch.Tensor) and args:
            printed[layer] = _operations(layer, args[0], out) * len(list(layer.parameters()))

    for layer in probe.modules():
        layer.register_forward_hook(record)
    with _plain_attention(), _Counter() as counter:
        call(probe, tree_map_only(torch.Tensor, lambda one: one.to(device), example_input))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Profile(parameters, counter.flops // 2, sum(printed.values()), parameters * 4 / 1024**2)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention be matrix products, which the counter knows on every device, also in torch's Transformer layers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def build_and_profile(build: Build, rate: float, example_input: torch.Tensor) -> tuple[nn.Module, Profile]:
    """Return the model of a rate and its profile. The global random generators are left as they were.

    It is built on the CPU: on ``meta``, torch loads its compiler for batch norm, which takes longer than to compute it.
    """
    with kept_random_state():
        model = build(rate)
        return model, profile(model, example_input)


def profile_mix(build: Build, mix: Mix, example_input: torch.Tensor, *, device: str = "meta") -> MixProfile:
    """Return the mean cost of the models of a mix, each of which is built on ``device`` and profiled."""
    profiles = {}
    for rate in mix.all_rates:
        with kept_random_state(), torch.device(device):
            model = build(rate)
        profiles[rate] = profile(model, example_input)
    return mean_profile(profiles, mix)


def mean_profile(profiles: Mapping[float, Profile], mix: Mix) -> MixProfile:
    """Return the mean over a mix's clients of profiles that are given by rate."""
    means = {
        field.name: mix.mean({rate: getattr(one, field.name) for rate, one in profiles.items()})
        for field in fields(Profile)
    }
    return MixProfile(**means, ratio=means["parameters"] / profiles[mix.global_rate].parameters)


def _operations(layer: nn.Module, x: torch.Tensor, out: torch.Tensor) -> int:
    match layer:
        case nn.Conv2d():
            per_output = math.prod(layer.kernel_size) * layer.in_channels // layer.groups + (layer.bias is not None)
            return per_output * out.numel()
        case nn.Linear():
            return x.numel() * layer.out_features
        case nn.BatchNorm2d() | nn.InstanceNorm2d() | nn.LayerNorm():
            return 2 * x.numel()
        case _:
            return 0
