"""What must hold of a model that is sliced, and what was found."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from heterofl_flwr.client import load_parameters
from heterofl_flwr.core import Aggregator, Plan, width
from heterofl_flwr.elastic_models import Elastic, elastic
from heterofl_flwr.elastic_models.channels import Places
from heterofl_flwr.errors import HeteroFLError
from simulations.model_zoo.twin import Twin, difference

RATES = (1.0, 0.5, 0.25, 0.3)
MOST_OFF = 0.02
"""By how much the number of parameters may differ from the count axis by axis, as a part of it."""
MOST_DIFFERENT = {torch.float64: 1e-6, torch.float32: 1e-3}
"""By how much the output of a slice may differ from its twin's, as a part of what different inputs make."""


class BrokenPropertyError(HeteroFLError):
    """Something that must hold of every sliced model does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was measured on a model of which everything holds."""

    parameters: Mapping[float, int]  # the number of parameters at each rate
    off: float = 0.0  # the largest distance of that from the count axis by axis, as a part of it
    seconds: float = 0.0  # seconds of the processor that `elastic` took
    # the largest difference of a slice's output from the full model's with zeros for what the slice lacks, as a part
    # of what different inputs make
    difference: float = 0.0
    # what counts channels, so that zeros alone would not do; the twin counts only those kept there
    explained: Sequence[str] = ()


def check(model: nn.Module, inputs: Tensor, ends: tuple[int, int], rates: Sequence[float] = RATES) -> Checked:
    """Slice a model at some rates and check each slice; the first thing that does not hold is an error.

    ``inputs`` are two different examples in the model's dtype, ``ends`` the lengths of its own input and output.
    """
    before = _looks(model)
    started = time.process_time()
    build = elastic(model, inputs)
    seconds = time.process_time() - started
    _demand(_looks(model) == before, "the trace changed the model given")
    model.eval()
    smaller = sorted((rate for rate in rates if rate < 1), reverse=True)
    _check_whole(model, build, inputs, smaller)
    parameters = {1.0: sum(parameter.numel() for parameter in model.parameters())}
    off = most = 0.0
    twin = Twin(model)
    for rate in smaller:
        small, plan = build(rate).eval(), build.plan(rate)
        cut = plan.extract(dict(model.named_parameters()))
        for name, parameter in small.named_parameters():
            _demand(torch.equal(parameter, cut[name]), f"{name} is not the plan's slice")
        found = difference(small, twin.narrowed(plan), inputs)
        _demand(
            found <= MOST_DIFFERENT[next(small.parameters()).dtype],
            f"at rate {rate:g} the output differs from the full model's with zeros by {found:.1e} of what inputs make",
        )
        most = max(most, found)
        parameters[rate] = sum(parameter.numel() for parameter in small.parameters())
        off = max(off, _check_number(small, expected_parameters(model, build, rate, ends), rate))
    explained = sorted(twin.explained)
    del twin, small, cut
    _check_training(model, build, inputs, rates)
    parameters = {rate: parameters[rate] for rate in (1.0, *rates)}
    return Checked(parameters=parameters, off=off, seconds=seconds, difference=most, explained=explained)


def _check_whole(model: nn.Module, build: Elastic, inputs: Tensor, smaller: Sequence[float]) -> None:
    """Demand that level a is the user's model, bit for bit, and that plans between it and slices are the build's."""
    whole = build(1.0).eval()
    _demand(isinstance(whole, type(model)), f"the slice is a {type(whole).__name__}, not a {type(model).__name__}")
    theirs = whole.state_dict()
    for name, tensor in model.state_dict().items():
        _demand(name in theirs and torch.equal(tensor, theirs[name]), f"{name} is not the model's own at rate 1")
    same = map(torch.equal, _outputs(model, inputs), _outputs(whole, inputs))
    _demand(all(same), "the output is not the model's own at rate 1")
    for rate in smaller:
        alike = build.plan(rate) == Plan.of(whole, build(rate))
        _demand(alike, f"Plan.of differs from the plan of the build at rate {rate:g}")


def _check_number(small: nn.Module, expected: Mapping[str, float], rate: float) -> float:
    """Return by how much the number of parameters differs from the count axis by axis; demand that it is little."""
    found = {name: parameter.numel() for name, parameter in small.named_parameters()}
    number, counted = sum(found.values()), sum(expected.values())
    off = abs(number / counted - 1)
    worst = max(found, key=lambda name: abs(found[name] - expected[name]))
    _demand(
        off <= MOST_OFF,
        f"at rate {rate:g} there are {number / counted - 1:+.1%} parameters beside the count axis by axis: {worst} has "
        f"{found[worst]}, counted {expected[worst]:.0f}",
    )
    return off


def _check_training(model: nn.Module, build: Elastic, inputs: Tensor, rates: Sequence[float]) -> None:
    """Demand that each slice can be trained, and that what comes of it can be averaged and loaded again."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    aggregator = Aggregator(state)
    for rate in rates:
        aggregator.add(build.plan(rate), _trained(build(rate).train(), inputs, rate))
    new = aggregator.result()
    for name, tensor in state.items():
        _demand(torch.allclose(new[name], tensor + 1), f"the mean of {name} is not that of what was sent")
    for rate in rates:
        load_parameters(build(rate), new if rate == 1 else build.plan(rate).extract(new))


@torch.no_grad()
def _trained(small: nn.Module, inputs: Tensor, rate: float) -> dict[str, Tensor]:
    """Demand that all of a slice learns; return its parameters, each entry larger by one."""
    with torch.enable_grad():
        torch.stack([output.square().mean() for output in _outputs(small, inputs)]).sum().backward()
    for name, parameter in small.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        good = gradient is not None and bool(gradient.isfinite().all())
        _demand(good, f"{name} has no gradient, or one that is not finite, at rate {rate:g}")
    for parameter in small.parameters():
        parameter.add_(1)
    return {name: tensor.detach() for name, tensor in small.named_parameters()}


def _outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.set_grad_enabled(model.training):
        return [leaf for leaf in tree_leaves(model(inputs)) if isinstance(leaf, Tensor)]


def _looks(model: nn.Module) -> dict[str, object]:
    """Return all that a trace could change of a model: values, attributes, hooks and modes of its layers."""
    found: dict[str, object] = {
        name: (id(tensor), tensor.dtype, tensor.shape, torch.hash_tensor(tensor.detach()).item())
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    for name, layer in model.named_modules():
        held = vars(layer).items()
        found[f"layer {name}"] = {key: copy.copy(one) if isinstance(one, dict | list) else one for key, one in held}
    return found


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPropertyError(otherwise)


def expected_parameters(model: nn.Module, build: Elastic, rate: float, ends: tuple[int, int]) -> dict[str, float]:
    """Return the number for each parameter; ``ends`` are the lengths of the model's own input and output."""
    channels = build.part(rate).channels
    expected, counted = {}, set()
    for prefix, layer in model.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            if parameter in counted:  # tied to one of another layer
                continue
            counted.add(parameter)
            name = f"{prefix}.{own}" if prefix else own
            places = channels.axes[name]
            axes = zip(parameter.shape, _shrinks(layer, parameter.shape, places), places, strict=True)
            expected[name] = math.prod(
                _length(length, of, rate) if cut and length != ends[axis == 0] else length
                for axis, (length, cut, of) in enumerate(axes)
            )
    return expected


def _shrinks(layer: nn.Module, shape: Sequence[int], places: Sequence[Places | None]) -> list[bool]:
    """Return which axes of a parameter of a layer shrink."""
    traced = [one is not None for one in places]
    if isinstance(layer, _ConvNd) and len(shape) > 1:
        # Groups are dropped whole, or each of them shrinks: that is for the trace to choose.
        return [True, layer.groups == 1 or traced[1], *[False] * (len(shape) - 2)]
    if isinstance(layer, nn.Embedding):
        return [False, True]
    known = (nn.Linear, _ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)
    return [True] * len(shape) if isinstance(layer, known) else traced


def _length(length: int, places: Places | None, rate: float) -> float:
    """Return how many entries of an axis should be left."""
    if places is None:
        return length * rate
    groups, numbers = places.T
    whole = int((groups < 0).sum())
    counted = 0.0
    for group in np.unique(groups[groups >= 0]):
        own = numbers[groups == group]
        channels = len(np.unique(own))
        counted += len(own) / channels * width(channels, rate)
    return counted + whole * rate
