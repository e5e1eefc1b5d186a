"""The registry of operators: what each says about the positions of its outputs' axes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_flatten

from heterofl_flwr.elastic_models.trace import Trace

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One call of an operator: what went in and what came out."""

    operator: OpOverload[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any

    @cached_property
    def inputs(self) -> list[Tensor]:
        """All tensors that went in."""
        return _tensors((self.args, self.kwargs))

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All tensors that came out."""
        return _tensors(self.output)

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """The arguments by the names in the operator's schema, with defaults."""
        names = [argument.name for argument in self.operator._schema.arguments]
        defaults = {a.name: a.default_value for a in self.operator._schema.arguments if a.has_default_value()}
        return {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}


Operator = Callable[[Trace, Call], None]
_operators: dict[OpOverloadPacket[..., Any], Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Make the decorated function the rule of these ATen operators, and of the same in place."""

    def add(rule: Operator) -> Operator:
        for name in names:
            for one in (name, f"{name}_"):
                if hasattr(aten, one):
                    _operators[getattr(aten, one)] = rule
        return rule

    return add


def find_operator(called: OpOverload[..., Any]) -> Operator | None:
    """Return the rule of an operator; those that work entry by entry share one."""
    found = _operators.get(called.overloadpacket)
    if found is None and _is_entrywise(called):
        return _operators[aten.add]
    return found


def _is_entrywise(called: OpOverload[..., Any]) -> bool:
    """Whether an operator, or the one of which it is the form in place, carries torch's tag."""
    plain = getattr(aten, called.overloadpacket.__name__.removesuffix("_"), called.overloadpacket)
    overloads = [getattr(plain, name) for name in plain.overloads()]
    return any(torch.Tag.pointwise in one.tags for one in (called, *overloads))


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
