"""Which of a model's parameters server and clients exchange: all but those that the model itself excludes."""

from collections.abc import Iterable

from torch import nn

_EXCLUDED = "not_exchanged"


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Mark parameters that are never exchanged, because server and clients build the same ones.

    Those of a pre-trained model under adapters are such. They are in no plan, so nobody sends, averages, stores or
    counts them. The mark is the model's: a copy of the model has it too. That a parameter is frozen does not exclude
    it, for its values may be random, and then every client would draw others.
    """
    model.__dict__[_EXCLUDED] = tuple(names)


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that server and clients exchange; a tied one has its first name."""
    excluded = {id(layer.get_parameter(name)) for layer in model.modules() for name in vars(layer).get(_EXCLUDED, ())}
    return {name: own for name, own in model.named_parameters() if id(own) not in excluded}
