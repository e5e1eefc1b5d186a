"""The registry of functions that code hands lengths to: what it says by that about axes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heterofl_flwr.slicing.trace import Trace

Function = Callable[[Trace, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]
"""Runs a function of torch on its arguments, takes note of the lengths among them, and returns what it returned."""

_functions: dict[object, Function] = {}


def function(*called: object) -> Callable[[Function], Function]:
    """Make the decorated function the rule of these functions of torch."""

    def add(rule: Function) -> Function:
        _functions.update(dict.fromkeys(called, rule))
        return rule

    return add


def find_function(called: object) -> Function | None:
    """Return the rule of a function, or None for one that takes no lengths."""
    return _functions.get(called)
