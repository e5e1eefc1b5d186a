"""Modes of torch that see each operator and each function that a model calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from heterofl_flwr.elastic_models.rules import FUNCTIONS, Call, find_operator, find_stand_in
from heterofl_flwr.elastic_models.trace import Trace
from heterofl_flwr.errors import UnsupportedLayerError

_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


class Operators(TorchDispatchMode):
    """Calls each operator, or the stand-in that explains it by others, and passes on what was called."""

    def __init__(self, listener: Callable[[Call], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._listener = listener

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the operator."""
        given = dict(kwargs or {})
        replacement = find_stand_in(func)
        if replacement is not None:
            with self:
                return replacement(*args, **given)
        call = Call(func, args, given, func(*args, **given))
        self._listener(call)
        return call.output


def follow(trace: Trace, call: Call) -> None:
    """Let an operator's rule mark the axes of its outputs."""
    rule = find_operator(call.function)
    if rule is not None:
        rule(trace, call, list(trace.rows(call.inputs[0])) if call.inputs else [])
    elif any(row is not None for tensor in call.inputs for row in trace.rows(tensor)):
        name = str(call.function.overloadpacket)
        raise UnsupportedLayerError(
            f"torch.ops.{name} is not known. Say by torch's own operators how its output's axes depend on its "
            f"inputs: @heterofl_flwr.elastic_models.stand_in(torch.ops.{name}), a function of the same arguments"
        )


class Functions(TorchFunctionMode):
    """Calls functions by their rules, and has the trace listen to what the model's own code compares between them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        trace.listening = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the function, by its rule if it has one. What torch's own code compares does not count."""
        rule = FUNCTIONS.get(func)
        given = dict(kwargs or {})
        self._trace.listening = False
        try:
            return func(*args, **given) if rule is None else rule(self._trace, Call(func, args, given))
        finally:
            self._trace.listening = True


class Contiguous(TorchFunctionMode):
    """Lets products have inputs without gaps, because torch chooses operators for them by strides, and so by widths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the function."""
        if func in _PRODUCTS:
            args = [one.contiguous() if isinstance(one, Tensor) else one for one in args]
        return func(*args, **(kwargs or {}))
