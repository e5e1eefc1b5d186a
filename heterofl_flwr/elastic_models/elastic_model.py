"""``elastic``: make any model sliceable."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from reprlib import repr as shown
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError, check_count, check_list, listed
from heterofl_flwr.core.levels import exact_rate, width
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.slice_rules import prefix
from heterofl_flwr.elastic_models.channels import kept_positions
from heterofl_flwr.elastic_models.check_slice import Step, check_slice
from heterofl_flwr.elastic_models.cut_layers import Slice, adjust_layers, attach_scaler
from heterofl_flwr.elastic_models.skeleton import Skeleton, copy_with, without_values
from heterofl_flwr.elastic_models.trace_model import Traced, trace_model

_CHECKED = 0.3  # rate that ``elastic`` checks: most widths are rounded at it; other rates are checked when first built
_UNUSED = (
    "the model makes no use of {} on the example inputs, so nobody knows how they may be cut: they stay whole at every "
    "rate, and take inputs of their full width. To cut them, give inputs with which they are used, or a model around "
    "this one whose forward uses them; to keep them without this warning, name them: fixed=[...]"
)
_LITERAL = (
    "{} divides a sum over channels by their full number, which stands in the code. A slice adds fewer channels, so "
    "it divides by too much: use mean, or take the number from the tensor's shape"
)
_FACTORS = (
    "{} multiplies by a number that changes with the rate, but not like a width or its root: the code computes or "
    "chooses this number by a width, so a slice computes something else than the full model"
)
_NOT_SMALLER = 0.6
"""``elastic`` warns if a slice of rate 0.5 keeps more than this fraction of the parameters. 0.25 to 0.5 is usual."""


@dataclass(eq=False, kw_only=True)
class Elastic:
    """Function from a rate to a slice of one model; made by ``elastic``."""

    model: nn.Module  # copy of the full model
    traced: Traced
    example_inputs: object  # on the meta device
    multiple_of: int
    global_rate: float
    scaler: bool
    checked_widths: set[tuple[int, ...]]  # widths of slices that have passed the check

    def __call__(self, rate: float) -> nn.Module:
        """Return a new model of this rate, with a slice of the full model's weights."""
        # The first use of a rate checks that the slice calls the same operators as the full model.
        model = self.checked(rate)
        if self.scaler:
            ratio = exact_rate(rate) / exact_rate(self.global_rate)
            attach_scaler(self.model, model, ratio)
        return model

    def checked(self, rate: float) -> nn.Module:
        """Return a new model of this rate without Scalers. It is checked unless its widths have passed before."""
        part = self.part(rate)
        model = self._cut(part)
        if part.widths not in self.checked_widths:
            sizes = self.traced.channels.sizes
            # For a width of 1, torch calls other operators, for example in einsum. So steps are compared for a slice
            # that keeps two channels or more of each group that has them, and the slice of this rate only has to run.
            wide = tuple(max(few, min(2, size)) for few, size in zip(part.widths, sizes, strict=True))
            if wide not in self.checked_widths:
                slice_ = Slice(self.traced.channels, wide)
                self._check(self._cut(slice_), slice_, rate, self.traced.steps)
            if part.widths != wide:
                self._check(model, part, rate, None)
            self.checked_widths |= {wide, part.widths}
        return model

    def _cut(self, part: Slice) -> nn.Module:
        model = copy_with(self.model, part.cut)
        layers = dict(model.named_modules(remove_duplicate=False))
        for number, places in self.traced.numbers.items():
            attributes, value = layers[number.layer].__dict__, len(kept_positions(places, part.widths))
            if number.place is not None:  # the number is an item of a sequence
                old: Any = attributes[number.name]
                value = type(old)(
                    value if place == number.place else number_there for place, number_there in enumerate(old)
                )
            attributes[number.name] = value
        adjust_layers(self.model, model)
        vars(model)["plan_rule"] = part
        return model

    def _check(self, model: nn.Module, part: Slice, rate: float, steps: Sequence[Step] | None) -> None:
        skeleton = Skeleton(model, self.traced.says_tracing)
        suspects = check_slice(steps, part.widths, part.channels.sizes, skeleton, self.example_inputs, rate)
        for layers, text in zip(suspects, (_LITERAL, _FACTORS), strict=True):
            if layers:
                warnings.warn(text.format(", ".join(sorted(layers))), stacklevel=4)

    def plan(self, rate: float) -> Plan:
        """Return the plan that slices this rate's model out of the full model."""
        return Plan(self.part(1.0).axes(self.model.named_parameters(), self.part(rate))).sliced(prefix)

    def part(self, rate: float) -> Slice:
        """Return the ``Slice`` of this rate, which has the number of channels of each group."""
        exact_rate(rate)
        channels, multiple = self.traced.channels, self.multiple_of
        widths = {size: min(math.ceil(width(size, rate) / multiple) * multiple, size) for size in channels.sizes}
        return Slice(channels, tuple(widths[size] for size in channels.sizes))


def elastic(
    model: nn.Module,
    example_inputs: object,
    *,
    fixed: Sequence[str] = (),
    outputs: Sequence[str] = (),
    multiple_of: int = 1,
    global_rate: float = 1.0,
    scaler: bool | None = None,
) -> Elastic:
    """Return ``build``, a function from a rate to a slice of ``model``; pass it to ``HeteroFL(build)``.

    The model is run on tensors without values, to see which axes of its parameters must be sliced alike. Inputs and
    outputs keep their widths. ``model`` is not changed. ``build(1.0)`` computes the same outputs as ``model``, bit for
    bit. A smaller model has a slice of the weights and is of the same class.

    Parameters
    ----------
    model : nn.Module
        A model made of torch's operators, with any weights.
    example_inputs : object
        Input of the model: a tensor, a tuple of arguments or a mapping of keyword arguments. One or two examples
        are enough.
    fixed : Sequence[str]
        Patterns (``fnmatch``) of the names of layers or parameters that keep their full width.
    outputs : Sequence[str]
        Names of the outputs that your code reads, if the model returns a mapping or an object. Only these outputs
        keep their widths. By default, all output tensors keep their widths, also hidden states.
    multiple_of : int
        The width of each group of channels is rounded up to a multiple of this number. In attention, the width of
        one head is rounded.
    global_rate : float
        The rate of the global model, which by default is the largest rate of the mix.
    scaler : bool | None
        Whether a ``Scaler`` follows each linear layer, convolution, embedding and ``nn.MultiheadAttention`` whose
        output shrinks. In training, the Scaler divides the output by ``rate / global_rate`` (section 3.3). Add
        other layer types to ``SCALED``. By default, only models with norms get Scalers: without norms, training
        with Scalers may diverge.

    Raises
    ------
    UnsupportedLayerError
        If the model cannot be traced, or if the operators of a slice fail the check. ``elastic`` checks one rate,
        and ``build`` checks each other rate when it is first used.

    Warns
    -----
    UserWarning
        If parameters are not used on the example inputs; they keep their full width.
        If the code divides a sum over channels by a plain number that equals the full number of channels.
        If the code multiplies by a number that changes with the rate, but not like a width or its root.
        If a slice of rate 0.5 keeps more than 60 % of the parameters, and not only because of ``fixed`` or unused
        parameters.

    Examples
    --------
    >>> import torch
    >>> build = elastic(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 3))
    >>> build(0.5)
    Sequential(
      (0): Linear(in_features=3, out_features=4, bias=True)
      (1): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    exact_rate(global_rate)
    check_count("multiple_of", multiple_of, 1)
    check_list("fixed", fixed, "head.*")
    check_list("outputs", outputs, "logits")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {shown(model)}; expected a module, such as Net() of a class Net")
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise UnsupportedLayerError(
            f"parameters {listed(lazy)} have no shape yet: run one batch through the model first"
        )
    if isinstance(example_inputs, Mapping):
        example_inputs = dict(example_inputs)  # the result of a tokenizer is a mapping and no dict
    traced = trace_model(model, example_inputs, fixed, outputs)
    if traced.unused:
        warnings.warn(_UNUSED.format(", ".join(traced.unused)), stacklevel=2)
    build = Elastic(
        model=copy_with(model, lambda name, tensor: tensor.clone()),
        traced=traced,
        example_inputs=without_values(example_inputs),
        multiple_of=multiple_of,
        global_rate=global_rate,
        scaler=traced.normalises if scaler is None else scaler,
        checked_widths={tuple(traced.channels.sizes)},
    )
    build.checked(_CHECKED)
    _warn_if_large(build, fixed)
    return build


def _warn_if_large(build: Elastic, fixed: Sequence[str]) -> None:
    number, half = build.plan(1.0).parameters, replace(build, multiple_of=1).plan(0.5).parameters
    reasons = "".join(f"\n- {reason}" for reason in build.traced.reasons[:5])
    if half <= _NOT_SMALLER * number or (not reasons and (fixed or build.traced.unused)):
        return
    why = (
        f"Channels are kept whole where{reasons}\nLengths that are taken from a tensor's shape or from a number that a "
        f"layer holds are cut with the tensor or layer."
        if reasons
        else "Many channels of the model are inputs or outputs, or its code ties them to one another so that none can "
        "be left out, as a convolution along channels or local response norm does. Smaller rates save little."
    )
    warnings.warn(f"at rate 0.5 a slice keeps {half / number:.0%} of the parameters. {why}", stacklevel=3)
