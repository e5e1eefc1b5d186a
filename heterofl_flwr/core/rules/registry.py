"""The registry of slicing rules: from a layer's type to the axes of its parameters."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from torch import nn

from heterofl_flwr.core.axes import Axes
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError

Rule = Callable[[Any, Any], Mapping[str, Axes]]
"""From the full layer and the local layer to the axes of each parameter, by its name within the layer."""

_Rule = TypeVar("_Rule", bound=Rule)
_Added = TypeVar("_Added")
_rules: dict[type[nn.Module], Rule] = {}


def register(*layer_types: type[nn.Module]) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the rule for these layer types and their subclasses.

    A rule takes the full and the local layer and returns the axes of every parameter it speaks for, by name. Names
    may reach into children (``"linear_q.weight"``); children whose parameters are spoken for need no rule of their
    own. A rule registered for a type replaces an earlier one::

        @register(MyLayer)
        def my_layer(full: MyLayer, local: MyLayer) -> dict[str, Axes]:
            return {"kernel": axes_between(full.kernel.shape, local.kernel.shape, parts={0: full.heads})}
    """
    return adding("register", _rules, layer_types)


def adding(
    name: str, rules: MutableMapping[type[nn.Module], Any], layer_types: Sequence[type[nn.Module]]
) -> Callable[[_Added], _Added]:
    """Return the decorator that makes a function the rule for layer types; ``name`` is that of what the user called."""
    wrong = [kind for kind in layer_types if not (isinstance(kind, type) and issubclass(kind, nn.Module))]
    if wrong or not layer_types:
        raise ConfigError(f"{name} takes subclasses of torch.nn.Module, got {wrong or 'nothing'}")

    def add(rule: _Added) -> _Added:
        rules.update(dict.fromkeys(layer_types, rule))
        return rule

    return add


def find_rule(layer: nn.Module) -> Rule | None:
    """Return the rule of the layer's type or of its nearest base class that has one."""
    return next((_rules[kind] for kind in type(layer).__mro__ if kind in _rules), None)


def unsupported(name: str, layer: nn.Module, reason: str) -> UnsupportedLayerError:
    """Return the error that names a layer, what is wrong, and how to register a rule for it."""
    kind = type(layer).__name__
    return UnsupportedLayerError(
        f"layer {name or '(the model itself)'} of type {kind}: {reason}. Teach it with a rule: "
        f"@heterofl_flwr.core.register({kind}), a function of the full and the local layer that returns the axes of "
        f"each parameter; rules exist for {', '.join(sorted(kind.__name__ for kind in _rules))}"
    )
