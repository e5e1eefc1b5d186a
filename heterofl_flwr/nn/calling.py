"""What a model is called with: a tensor, a tuple of arguments, or a mapping of named ones."""

from collections.abc import Mapping

from torch import nn


def call(model: nn.Module, given: object) -> object:
    """Return what a model makes of inputs in one of the three forms."""
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)
