"""The registry of stand-ins: what takes the place of a layer or an operator while a model is traced."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from heterofl_flwr.errors import ConfigError

StandIn = Callable[..., Any]
_Added = TypeVar("_Added", bound=StandIn)

_layers: dict[type[nn.Module], StandIn] = {}
_operators: dict[object, StandIn] = {}


def stand_in(*replaced: object) -> Callable[[_Added], _Added]:
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
    wrong = [one for one in replaced if not (_is_layer(one) or isinstance(one, OpOverload | OpOverloadPacket))]
    if wrong or not replaced:
        raise ConfigError(
            f"stand_in takes subclasses of torch.nn.Module and operators of torch.ops, got {wrong or 'nothing'}"
        )

    def add(function: _Added) -> _Added:
        for one in replaced:
            if isinstance(one, type):
                _layers[one] = function
            else:
                _operators[one] = function
        return function

    return add


def stand_in_of_layer(layer: nn.Module) -> StandIn | None:
    """Return the stand-in of the layer's type or of its nearest base class that has one."""
    return next((_layers[kind] for kind in type(layer).__mro__ if kind in _layers), None)


def stand_in_of_operator(called: OpOverload[..., Any]) -> StandIn | None:
    """Return the stand-in of an operator."""
    return _operators.get(called) or _operators.get(called.overloadpacket)


def _is_layer(one: object) -> bool:
    return isinstance(one, type) and issubclass(one, nn.Module)
