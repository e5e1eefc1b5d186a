"""Hearing each operator that a model calls, behind its stand-in if it has one."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from heterofl_flwr.slicing.stand_ins import stand_in_of_operator


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
