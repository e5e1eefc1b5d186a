"""Registries of rules for layer types, operators or functions."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from heterofl_flwr.common.errors import ConfigError

LAYER_TYPES = "subclasses of torch.nn.Module"

Rule = TypeVar("Rule", bound=Callable[..., object])


def is_layer_type(value: object) -> bool:
    """Return True if a value is a subclass of ``torch.nn.Module``."""
    return isinstance(value, type) and issubclass(value, nn.Module)


class Registry(dict[Any, Callable[..., Any]]):
    """Dictionary of rules by layer type, operator or function.

    Parameters
    ----------
    name : str
        Name of the decorator, for error messages.
    expected : str
        Description of valid keys, for error messages.
    accepts : Callable[[object], bool]
        Returns True for a valid key.
    """

    def __init__(
        self, name: str, expected: str = LAYER_TYPES, accepts: Callable[[object], bool] = is_layer_type
    ) -> None:
        super().__init__()
        self.name, self.expected, self.accepts = name, expected, accepts

    def add(self, *keys: object) -> Callable[[Rule], Rule]:
        """Return a decorator that stores a function as the rule of each key."""
        wrong = [key for key in keys if not self.accepts(key)]
        if wrong or not keys:
            raise ConfigError(f"{self.name} takes {self.expected}, got {wrong or 'nothing'}")

        def add(rule: Rule) -> Rule:
            self.update(dict.fromkeys(keys, rule))
            return rule

        return add

    def find(self, layer: nn.Module) -> Callable[..., Any] | None:
        """Return the rule of the layer's type, or of its nearest base class that has a rule; None without any rule."""
        return next((self[kind] for kind in type(layer).__mro__ if kind in self), None)
