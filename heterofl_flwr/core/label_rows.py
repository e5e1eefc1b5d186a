"""Label rows: classifier parameters with one row for each class."""

from collections.abc import Callable, Iterable, Mapping
from operator import index
from reprlib import repr as shown
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.mix import Mix


def whole_numbers(labels: Iterable[int]) -> list[int]:
    """Return distinct labels in ascending order; raise ``ConfigError`` if they are not whole numbers."""
    try:
        numbers = list(labels)
        # Booleans of Python, numpy and torch would be read as 0 and 1.
        if any(isinstance(label, bool) or "bool" in str(getattr(label, "dtype", "")) for label in numbers):
            raise TypeError("a mask of booleans; name the classes, [label for label in range(10) if label in mine]")
        return sorted({index(label) for label in numbers})
    except TypeError as error:
        raise ConfigError(
            f"labels is {shown(labels)}; expected the classes of this client's data, as whole numbers: {error}"
        ) from error


LabelRule = Literal["sent", "none"]
"""Classifier rows to average from a reply: the rows of the reply's labels (``sent``), or all rows (``none``)."""


def last_linear(model: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the last linear layer's parameters, with ``prefix`` before them; [] without such a layer."""
    layers = [(name, layer) for name, layer in model.named_modules(prefix=prefix) if isinstance(layer, nn.Linear)]
    return [parameter for name, layer in layers[-1:] for parameter, _ in layer.named_parameters(prefix=name)]


def find_label_rows(build: Callable[[float], nn.Module], mix: Mix) -> tuple[str, ...]:
    """Return the names of the classifier's parameters; () if the classifier is unclear.

    A model can list these names in its attribute ``label_rows``. Otherwise, ``_find_heads`` must return exactly one
    layer, and this layer must not belong to a decoder.
    """
    model, smaller = build(mix.global_rate), build(mix.rates[-1])
    named = getattr(model, "label_rows", None)
    if named is not None:
        return tuple(named)
    partners = dict(smaller.named_modules())
    unshrunk: dict[str, nn.Linear] = {}
    for name, layer in model.named_modules():
        partner = partners.get(name)  # None if the smaller model has fewer blocks
        if (
            isinstance(layer, nn.Linear)
            and isinstance(partner, nn.Linear)
            and partner.out_features == layer.out_features
        ):
            unshrunk[name] = layer
    heads = _find_heads(model, unshrunk)
    if len(heads) != 1 or _is_decoder(model, *heads):
        return ()
    name, layer = heads[0], unshrunk[heads[0]]
    # With weight norm, these are the tensors that the weight is computed from.
    parameters = layer.named_parameters(prefix=name)
    return tuple(parameter for parameter, tensor in parameters if tensor.shape[:1] == (layer.out_features,))


def _find_heads(model: nn.Module, unshrunk: Mapping[str, nn.Linear]) -> list[str]:
    """Return the names of linear layers that may be the classifier.

    ``unshrunk`` has the linear layers with equally many outputs at the largest and smallest rate. A layer with n
    outputs is left out if a later linear layer has n inputs. If ``unshrunk`` has all linear layers of the model, the
    result has only the last remaining layer, and remaining layers with the same parent module and number of inputs.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    names = list(layers)
    inputs = [layer.in_features for layer in layers.values()]
    heads = [name for name in unshrunk if unshrunk[name].out_features not in inputs[names.index(name) + 1 :]]
    if heads and len(unshrunk) == len(layers):
        last_head = heads[-1]
        parent, features = last_head.rpartition(".")[0], unshrunk[last_head].in_features
        return [name for name in heads if (name.rpartition(".")[0], unshrunk[name].in_features) == (parent, features)]
    return heads


def _is_decoder(model: nn.Module, head: str) -> bool:
    """Return True if a convolution follows the layer ``head``, or the linear layers up to it form an autoencoder."""
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    place = [name for name, _ in named].index(head)
    *before, layer_before = [layer for _, layer in named[: place + 1] if isinstance(layer, nn.Linear)]
    outputs = layer_before.out_features
    is_autoencoder = bool(before) and before[0].in_features == outputs > min(layer.out_features for layer in before)
    return is_autoencoder or any(isinstance(layer, _ConvNd) for _, layer in named[place + 1 :])
