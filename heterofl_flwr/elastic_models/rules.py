"""Registries of trace rules, and the torch modes that apply them.

A trace rule says which axes of a torch operator or function are sliced alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.core.rule_registry import Registry, Rule, is_layer_type
from heterofl_flwr.elastic_models.channels import Row, Rows
from heterofl_flwr.elastic_models.lengths import Length, Trace

aten = torch.ops.aten
HOLDS_THE_MODEL = (
    "the model's code {} of the model given, not of its copy. If a hook or a function holds the model, let it use the "
    "layer that it is called with instead"
)
_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


_LENGTHS = {
    *("size", "normalized_shape", "N", "C", "HxW", "group", "groups", "start", "end", "repeats", "scale"),
    *("split_size", "split_sizes"),
}
"""Names of arguments that are not compared with those of the full model's call.

These are lengths, which the outputs' shapes show, and ``scale``, the factor of attention.
"""


class Call:
    """A call of an ATen operator.

    ``shape`` is the first argument's shape before the call.
    """

    def __init__(
        self,
        function: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        output: object,
        shape: Sequence[int] = (),
    ) -> None:
        self.function, self.args, self.kwargs, self.shape = function, args, kwargs, shape
        self.name: str = function.overloadpacket.__name__
        self.inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]

    @cached_property
    def named_arguments(self) -> Mapping[str, Any]:
        """Arguments by name, including defaults."""
        arguments = self.function._schema.arguments
        defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
        return {
            **defaults,
            **dict(zip((argument.name for argument in arguments), self.args, strict=False)),
            **self.kwargs,
        }

    def axes(self, number: int) -> list[int]:
        """Return the axes in the argument ``dim``; without ``dim``, all axes of a tensor with ``number`` axes."""
        dim = self.named_arguments.get("dim")
        dims = range(number) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
        return [axis % number for axis in dims]

    @property
    def numbers(self) -> tuple[float, ...]:
        """Arguments that are ``int`` or ``float``, except those named in ``_LENGTHS``."""
        values = {name: value for name, value in self.named_arguments.items() if name not in _LENGTHS}
        return tuple(leaf for leaf in tree_leaves(values) if isinstance(leaf, int | float))

    @property
    def terms(self) -> int:
        """Number of terms added for each entry of the output of a sum or a matrix product; 0 for other operators."""
        if self.name in ("mm", "bmm", "mv", "dot"):
            return self.shape[-1]
        return math.prod(self.shape) // max(self.outputs[0].numel(), 1) if self.name == "sum" else 0

    @property
    def divisor(self) -> float:
        """Number by which a ``div`` divides, or the reciprocal of the number by which a ``mul`` multiplies.

        It is 0 for other operators, or if the second operand is a tensor or 0.
        """
        number = self.args[1] if self.name.removesuffix("_") in ("mul", "div") else 0
        if not isinstance(number, int | float) or not number:
            return 0
        return number if self.name.startswith("div") else 1 / number


OPERATORS = Registry("operator", "operators of torch.ops.aten", lambda value: isinstance(value, OpOverloadPacket))
FUNCTIONS = Registry("function", "functions of torch", callable)
STAND_INS = Registry(
    "stand_in",
    "subclasses of torch.nn.Module and operators of torch.ops",
    lambda value: is_layer_type(value) or isinstance(value, OpOverload | OpOverloadPacket),
)
ADJUSTMENTS = Registry("adjust")

OperatorRule = Callable[[Trace, Call, list[Row | None]], Rows | None]


def operator(*names: str) -> Callable[[OperatorRule], OperatorRule]:
    """Register the decorated function as the trace rule of these ATen operators and their in-place forms.

    A rule takes the trace, the call, and the positions of the first input's axes. It returns the positions of the first
    output's axes. Or it stores the positions of all outputs with ``Trace.mark``, and returns None.
    """
    forms = (name for plain in names for name in (plain, f"{plain}_"))
    return OPERATORS.add(*(getattr(aten, name) for name in forms if hasattr(aten, name)))


function = FUNCTIONS.add
"""Register the decorated function as the trace rule of these torch functions.

A rule takes the trace, a callable that runs the torch function, and the function's arguments. It returns the result.
"""


def stand_in(*replaced: object) -> Callable[[Rule], Rule]:
    """Register the decorated function to replace layers or operators while ``elastic`` traces a model.

    A trace runs torch's own operators on tensors without values. It cannot follow custom operators, or code that
    depends on values. A stand-in computes an output with torch's operators. Only the axes of this output matter, its
    values do not::

        @stand_in(MyLayer)
        def my_layer(layer: MyLayer, x: Tensor) -> Tensor:
            return x * layer.gain

        @stand_in(torch.ops.mine.rotate)
        def rotate(x: Tensor, angle: float) -> Tensor:
            return x.clone()

    Parameters
    ----------
    replaced
        Subclasses of ``torch.nn.Module``: the stand-in takes the layer and the arguments of its ``forward``. Or
        operators of ``torch.ops``: the stand-in takes their arguments.
    """
    return STAND_INS.add(*replaced)


def adjust(*layer_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the decorated function to update attributes of sliced layers of these types.

    The function is called with each layer whose parameters or buffers are sliced, and may change only this layer::

        @adjust(MyLayer)
        def my_layer(layer: MyLayer) -> None:
            layer.scale = layer.weight.shape[0] ** -0.5
    """
    return ADJUSTMENTS.add(*layer_types)


@cache
def _find_operator(called: OpOverload[..., object]) -> OperatorRule | None:
    """Return an operator's trace rule, or None. Elementwise operators without a rule use that of ``add``."""
    packet = called.overloadpacket
    if packet in OPERATORS:
        return OPERATORS[packet]
    # The in-place form of an operator may lack torch's tag.
    plain = getattr(aten, packet.__name__.removesuffix("_"), packet)
    forms = [called, *(getattr(plain, name) for name in plain.overloads())]
    return OPERATORS[aten.add] if any(torch.Tag.pointwise in form.tags for form in forms) else None


def follow(trace: Trace, call: Call) -> None:
    """Apply an operator's trace rule to its call. If it has no rule, keep all axes of its inputs in full."""
    rule = _find_operator(call.function)
    if rule is not None:
        rows = rule(trace, call, list(trace.rows(call.inputs[0])) if call.inputs else [])
        if rows is not None:
            trace.mark(rows, call.outputs[0])
    else:
        lengths = [leaf for leaf in tree_leaves(trace.arguments) if isinstance(leaf, Length)]
        name = f"torch.ops.{call.function.overloadpacket}"
        why = f"{name} is not known (@heterofl_flwr.elastic_models.stand_in({name}) can say what it does)"
        rows_read = [row for leaf in call.inputs for row in trace.rows(leaf)]
        trace.pin(*rows_read, *(row for leaf in lengths for row in leaf.rows), why=why)


class Operators(TorchDispatchMode):
    """Torch mode that calls ``listener`` after each operator.

    An operator with a stand-in is replaced by the operators that the stand-in calls. An operator without a trace rule
    is decomposed into others, if torch can do this. ``listener`` gets only the operators that run.
    """

    def __init__(self, listener: Callable[[Call], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._listener = listener

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        named = dict(kwargs or {})
        replacement = STAND_INS.get(func) or STAND_INS.get(func.overloadpacket)
        if replacement is not None:
            with self:
                return replacement(*args, **named)
        if _find_operator(func) is None and func._can_decompose():  # torch expresses it by other operators
            with self:
                return func.decompose(*args, **named)
        shape = args[0].shape if args and isinstance(args[0], Tensor) else ()  # transpose_ changes it
        output = func(*args, **named)
        self._listener(Call(func, args, named, output, shape))
        return output


class Functions(TorchFunctionMode):
    """Torch mode that applies the trace rules of torch functions."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        trace.listening = True

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        rule, run = FUNCTIONS.get(func), partial(func, *args, **(kwargs or {}))
        self._trace.listening, self._trace.arguments = False, (args, kwargs)
        try:
            return run() if rule is None else rule(self._trace, run, *args, **(kwargs or {}))
        finally:
            self._trace.listening = True


class Alike(TorchFunctionMode):
    """Torch mode that makes a model call the same operators at every width.

    A call of ``torch.rand`` for a scalar returns 1, so stochastic depth drops no layer. The model that runs is a copy.
    If its code uses tensors of the original model, the mode raises ``UnsupportedLayerError``.
    """

    def __init__(self, tensors: Mapping[int, str]) -> None:
        super().__init__()
        self._originals = tensors  # names of the original model's tensors, by id

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        names = [self._originals[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._originals]
        if names:
            raise UnsupportedLayerError(HOLDS_THE_MODEL.format(f"uses {', '.join(names)}"))
        if func in _PRODUCTS:
            args = [leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in args]
        if func is torch.rand and (kwargs or {}).get("size", args[0] if args else None) in ((), []):
            return torch.ones((), device="cpu")
        return func(*args, **(kwargs or {}))
