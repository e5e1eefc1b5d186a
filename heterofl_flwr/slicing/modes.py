"""The two ears of a trace: one hears torch's operators, the other the functions that a model's code calls.

Operators are few and closed, so that the rules for them hold for any code that ends in them. But they know of a view
only that an axis of 768 became 12 and 64. That 64 is what one layer calls ``head_dim`` is heard where the code calls
``view``. Code inside torch's own functions is not listened to: it takes its lengths from shapes, so it is right at
every width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from heterofl_flwr.errors import UnsupportedLayerError
from heterofl_flwr.slicing.dispatch import Hearing
from heterofl_flwr.slicing.functions import find_function
from heterofl_flwr.slicing.operators import Call, find_operator
from heterofl_flwr.slicing.trace import Trace

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
                f"inputs: @heterofl_flwr.slicing.stand_in(torch.ops.{name}), a function of the same arguments"
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
