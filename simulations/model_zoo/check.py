"""Checks of a model that ``elastic`` slices: properties that must hold, and measured values."""

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.common.errors import HeteroFLError, UnsupportedLayerError, first_line
from heterofl_flwr.core import Aggregation, Plan
from heterofl_flwr.elastic_models import Elastic, elastic
from simulations.model_zoo.masks import UnprovenError
from simulations.model_zoo.twin import Twin, difference

RATES = (1.0, 0.9, 0.5, 0.3, 0.125)
MOST_DIFFERENT = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Tolerance, by dtype, on differences of a slice's output from its twin's, relative to those between two inputs."""


_MOVED = 0.05
"""Standard deviation of the noise added to a parameter before the check, relative to the parameter's own."""


class BrokenPropertyError(HeteroFLError):
    """A property that must hold for every sliced model does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Measurements of a model for which all properties hold."""

    parameters: Mapping[float, int]  # number of parameters by rate
    seconds: float = 0.0  # processor time of `elastic`
    # largest difference of a slice's output from its twin's, relative to the difference that two inputs make
    difference: float = 0.0
    unproven: str = ""  # reason why there is no twin to compare with
    large: str = ""  # reason why slices are larger than expected


def check(model: nn.Module, inputs: Tensor, rates: Sequence[float] = RATES, *, multiple_of: int = 1) -> Checked:
    """Slice a model at some rates, check each slice, and return the measurements.

    ``inputs`` are two different examples in the model's dtype.

    Raises
    ------
    UnsupportedLayerError
        If ``elastic`` refuses the model.
    BrokenPropertyError
        If ``elastic`` accepts the model, but a property does not hold.
    """
    model = _perturbed(model)
    before = _looks(model)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build = elastic(model, inputs, multiple_of=multiple_of)
    seconds = time.process_time() - started
    _demand(_looks(model) == before, "the trace changed the model given")
    model.eval()
    smaller = sorted((rate for rate in rates if rate < 1), reverse=True)
    try:
        whole = _check_whole(model, build, inputs)
        most, unproven = _check_slices(model, whole, build, inputs, smaller)
        _check_training(model, build, inputs, (1.0, *smaller[2::3]))  # the slowest part
    except (UnsupportedLayerError, RuntimeError) as error:  # RuntimeError: torch's error for shapes that do not fit
        raise BrokenPropertyError(f"accepted, but then: {first_line(error)}") from error
    large = [str(one.message).split("\n- ")[1:2] for one in said if "a slice keeps" in str(one.message)]
    parameters = {rate: build.plan(rate).parameters for rate in (1.0, *rates)}
    reason = next((one[0] for one in large if one), "")
    return Checked(parameters=parameters, seconds=seconds, difference=most, unproven=unproven, large=reason)


@torch.no_grad()
def _perturbed(model: nn.Module) -> nn.Module:
    """Return a copy with noise added to its parameters, because parameters that are 0 would hide faults."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in moved.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=_MOVED * (float(parameter.std()) if parameter.numel() > 1 else 0.0) or _MOVED)
    return moved


def _check_whole(model: nn.Module, build: Elastic, inputs: Tensor) -> nn.Module:
    """Check that the slice of rate 1 equals the user's model bit for bit; return it."""
    whole = build(1.0).eval()
    _demand(isinstance(whole, type(model)), f"the slice is a {type(whole).__name__}, not a {type(model).__name__}")
    theirs = whole.state_dict()
    for name, tensor in model.state_dict().items():
        _demand(name in theirs and torch.equal(tensor, theirs[name]), f"{name} is not the model's own at rate 1")
    same = map(torch.equal, _outputs(model, inputs), _outputs(whole, inputs))
    _demand(all(same), "the output is not the model's own at rate 1")
    return whole


def _check_slices(
    model: nn.Module, whole: nn.Module, build: Elastic, inputs: Tensor, smaller: Sequence[float]
) -> tuple[float, str]:
    """Check that each slice has the plan's weights and the outputs of its twin; return the largest difference."""
    most, unproven, twin = 0.0, "", Twin(model)
    for rate in smaller:
        small, plan = build(rate).eval(), build.plan(rate)
        _demand(plan == Plan.of(whole, small), f"Plan.of differs from the plan of the build at rate {rate:g}")
        cut = plan.extract(dict(model.named_parameters()))
        for name, parameter in small.named_parameters():
            _demand(torch.equal(parameter, cut[name]), f"{name} is not the plan's slice")
        try:
            found = difference(small, twin.narrowed(plan, small), inputs)
        except UnprovenError as error:
            _outputs(small, inputs)
            unproven = str(error)
            continue
        limit = MOST_DIFFERENT[next(small.parameters()).dtype]
        _demand(found <= limit, f"the output at rate {rate:g} is off by {found:.1e} of what inputs make")
        most = max(most, found)
    return most, unproven


def _check_training(model: nn.Module, build: Elastic, inputs: Tensor, rates: Sequence[float]) -> None:
    """Check that slices can be trained, the whole model first, and that their replies can be averaged and loaded."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    aggregator = Aggregation(state)
    idle: set[str] = set()  # parameters without gradient in the full model
    for rate in rates:
        small = build(rate).train()
        without = _without_gradient(small, inputs, rate)
        idle = without if rate == 1 else idle
        _demand(without <= idle, f"{', '.join(sorted(without - idle))} has no gradient at rate {rate:g}")
        aggregator.add(build.plan(rate), {name: tensor.detach() + 1 for name, tensor in small.named_parameters()})
    new = aggregator.result()
    for name, tensor in state.items():
        _demand(torch.allclose(new[name], tensor + 1), f"the mean of {name} is not that of what was sent")
    for rate in rates:
        load_parameters(build(rate), new if rate == 1 else build.plan(rate).extract(new))


def _without_gradient(small: nn.Module, inputs: Tensor, rate: float) -> set[str]:
    """Run a backward pass; return the parameters without gradient, and check that other gradients are finite."""
    loss = torch.stack([output.square().mean() for output in _outputs(small, inputs)]).sum()
    loss.backward()
    for name, parameter in small.named_parameters():
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        _demand(finite, f"{name} has a gradient that is not finite at rate {rate:g}")
    return {name for name, parameter in small.named_parameters() if parameter.grad is None}


def _outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.set_grad_enabled(model.training):
        leaves = tree_leaves(model(inputs))
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def _looks(model: nn.Module) -> dict[str, object]:
    """Return everything that a trace could change in a model: values, attributes, hooks and modes of its layers."""
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
