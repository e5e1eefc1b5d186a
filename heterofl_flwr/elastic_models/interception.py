"""The registry of stand-ins: what takes the place of a layer or an operator while a model is traced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from heterofl_flwr.elastic_models.function_rules import find_function
from heterofl_flwr.elastic_models.operators import Call, find_operator
from heterofl_flwr.elastic_models.trace import Trace
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError

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


class Hearing(TorchDispatchMode):
    """Calls each operator, or the stand-in that explains it by others, and hands on what was called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call the operator, and tell of it."""
        given = dict(kwargs or {})
        stand_in = stand_in_of_operator(func)
        if stand_in is not None:
            with self:
                return stand_in(*args, **given)
        output = func(*args, **given)
        self._called(func, args, given, output)
        return output

    def _called(self, func: OpOverload[..., Any], args: Sequence[Any], given: dict[str, Any], output: object) -> None:
        """Do what is to be done about a call."""
        raise NotImplementedError


Heard = Callable[[Call], None]

_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


class Operators(Hearing):
    """Hears every operator, and lets its rule say what the axes of its outputs are.

    Parameters
    ----------
    trace : Trace
        What is known so far.
    heard : Heard
        Is told of each call afterwards.
    """

    def __init__(self, trace: Trace, heard: Heard) -> None:
        super().__init__()
        self._trace = trace
        self._heard = heard

    def _called(self, func: OpOverload[..., Any], args: Sequence[Any], given: dict[str, Any], output: object) -> None:
        call = Call(func, args, given, output)
        rule = find_operator(func)
        if rule is not None:
            rule(self._trace, call)
        elif any(row is not None for tensor in call.inputs for row in self._trace.rows(tensor)):
            name = str(func.overloadpacket)
            raise UnsupportedLayerError(
                f"torch.ops.{name} is not known. Say by torch's own operators how its output's axes depend on its "
                f"inputs: @heterofl_flwr.elastic_models.stand_in(torch.ops.{name}), a function of the same arguments"
            )
        self._heard(call)


class Functions(TorchFunctionMode):
    """Hears the functions to which code hands lengths, and what it compares between them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __enter__(self) -> Self:
        """Hear from now on."""
        self._trace.listening = True
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *raised: object) -> None:
        """Hear no more."""
        self._trace.listening = False
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call the function, by its rule if it has one. What torch's own code compares does not count."""
        rule = find_function(func)
        given = dict(kwargs or {})
        self._trace.listening = False
        try:
            return func(*args, **given) if rule is None else rule(self._trace, func, args, given)
        finally:
            self._trace.listening = True


class Contiguous(TorchFunctionMode):
    """Lets products have inputs without gaps, because torch chooses operators for them by strides, and so by widths."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call the function."""
        if func in _PRODUCTS:
            args = [one.contiguous() if isinstance(one, Tensor) else one for one in args]
        return func(*args, **(kwargs or {}))
