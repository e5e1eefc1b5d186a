"""The registries of a trace: rules for torch's operators and functions, stand-ins, and adjustments of layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_leaves

from heterofl_flwr.core.layer_rules import Registry, is_layer_type
from heterofl_flwr.elastic_models.channels import Row
from heterofl_flwr.elastic_models.trace import Trace

aten = torch.ops.aten
_Rule = TypeVar("_Rule", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """One call of an operator or a function of torch: what went in, and of an operator what came out."""

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any = None

    @property
    def name(self) -> str:
        """The operator's name, without its overload."""
        return str(self.function.overloadpacket.__name__)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """All tensors that went in."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All tensors that came out."""
        return [leaf for leaf in tree_leaves(self.output) if isinstance(leaf, Tensor)]

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """The arguments by the names in the operator's schema, with defaults."""
        arguments = self.function._schema.arguments
        defaults = {one.name: one.default_value for one in arguments if one.has_default_value()}
        return {**defaults, **dict(zip((one.name for one in arguments), self.args, strict=False)), **self.kwargs}

    def argument(self, place: int, *names: str, default: Any = None) -> Any:
        """Return an argument of a function, which may be given by its place or by one of its names."""
        named = next((self.kwargs[name] for name in names if name in self.kwargs), default)
        return self.args[place] if len(self.args) > place else named

    def run(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)


OPERATORS = Registry("operator", "operators of torch.ops.aten", lambda one: isinstance(one, OpOverloadPacket))
FUNCTIONS = Registry("function", "functions of torch", callable)
STAND_INS = Registry(
    "stand_in",
    "subclasses of torch.nn.Module and operators of torch.ops",
    lambda one: is_layer_type(one) or isinstance(one, OpOverload | OpOverloadPacket),
)
ADJUSTMENTS = Registry("adjust")

OperatorRule = Callable[[Trace, Call, list[Row | None]], None]


def operator(*names: str) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the rule of these ATen operators, and of the same in place.

    It gets the trace, the call, and the positions of the first input's axes, and marks the call's outputs.
    """
    known = [name for plain in names for name in (plain, f"{plain}_") if hasattr(aten, name)]
    return OPERATORS.add(*(getattr(aten, name) for name in known))


def function(*called: object) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the rule of these functions of torch.

    It runs the function, takes note of the lengths among the arguments, and returns what the function returned.
    """
    return FUNCTIONS.add(*called)


def stand_in(*replaced: object) -> Callable[[_Rule], _Rule]:
    """Make the decorated function stand in for layer types or operators while ``elastic`` traces a model.

    A trace follows torch's own operators. Where a layer does something else, or what it does depends on values, say
    in torch's operators how its output's axes depend on its inputs and parameters; values do not matter. The models
    that are built run the layer itself::

        @stand_in(MyLayer)
        def my_layer(layer: MyLayer, x: Tensor) -> Tensor:
            return x * layer.gain

        @stand_in(torch.ops.mine.rotate)
        def rotate(x: Tensor, angle: float) -> Tensor:
            return x.clone()

    Parameters
    ----------
    replaced
        Subclasses of ``torch.nn.Module``, whose stand-in takes the layer and what its ``forward`` takes; or operators
        of ``torch.ops``, whose stand-in takes their arguments.
    """
    return STAND_INS.add(*replaced)


def adjust(*layer_types: type[nn.Module]) -> Callable[[_Rule], _Rule]:
    """Make the decorated function set right what layers of these types hold beside their parameters.

    It is called with each such layer of a model that ``elastic`` has cut, and changes that layer alone::

        @adjust(MyLayer)
        def my_layer(layer: MyLayer) -> None:
            layer.scale = layer.weight.shape[0] ** -0.5
    """
    return ADJUSTMENTS.add(*layer_types)


def find_operator(called: OpOverload[..., Any]) -> OperatorRule | None:
    """Return the rule of an operator; those that work entry by entry share one."""
    found = OPERATORS.get(called.overloadpacket)
    if found is None:
        # The form in place of an operator may lack torch's tag.
        plain = getattr(aten, called.overloadpacket.__name__.removesuffix("_"), called.overloadpacket)
        if any(torch.Tag.pointwise in one.tags for one in (called, *(getattr(plain, n) for n in plain.overloads()))):
            return OPERATORS[aten.add]
    return found


def find_stand_in(one: nn.Module | OpOverload[..., Any]) -> Callable[..., Any] | None:
    """Return the stand-in of a layer, by its type or nearest base class, or of an operator."""
    if isinstance(one, nn.Module):
        return STAND_INS.find(one)
    return STAND_INS.get(one) or STAND_INS.get(one.overloadpacket)
