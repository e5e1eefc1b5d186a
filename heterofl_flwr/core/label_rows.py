"""Classifier parameters with one row for each class (``label_rows``), and the choice of their rows to average."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from reprlib import repr as shown
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.common.errors import ConfigError, DataError, ReplyError, listed
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.slice_plan import Plan

Labels = Sequence[int] | Mapping[str, Sequence[int]]
"""Class numbers in a client's data. If the model has several heads, a mapping from head to class numbers. A head is
named by its layer, or by a parameter of ``label_rows``.
"""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        if missing := [name for name in named if name not in names]:
            raise ConfigError(
                f"label_rows of {type(model).__name__} names {listed(missing)}; expected a tuple of its parameters "
                f"with one row for each class; the parameters are {listed(names)}"
            )
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
    outputs is left out if a later linear layer has n inputs. If ``unshrunk`` has all linear layers of the model, a
    remaining layer is returned only if it has the same parent module and number of inputs as the last remaining layer.
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


class LabelRows:
    """Rows to average in parameters that have one row for each class."""

    def __init__(self, state: Mapping[str, Tensor], names: Sequence[str], *, extra_rows: bool) -> None:
        if missing := [name for name in names if name not in state or state[name].dim() == 0]:
            raise ConfigError(
                f"label_rows names {', '.join(missing)}, which the model lacks or which has no rows; expected some of "
                f"{listed(state)}"
            )
        self.sizes = {name: state[name].shape[0] for name in names}
        self._extra_rows = extra_rows

    def by_name(self, plan: Plan, labels: Labels | None) -> dict[str, Tensor]:
        """Return the indices of the rows to average, by parameter.

        Parameters that are missing in the result are averaged in full.
        """
        if labels is None:
            return {}
        if not self.sizes:
            raise ReplyError(
                "the reply names labels, and it is not certain which layers of this model have a row for each class: "
                "name their parameters on the server (averaging=Averaging(label_rows=[...])), or send no labels"
            )
        rows: dict[str, Tensor] = {}
        for head, classes in labels.items() if isinstance(labels, Mapping) else [("", labels)]:
            sizes = {name: size for name, size in self.sizes.items() if not head or f"{name}.".startswith(f"{head}.")}
            if head and not sizes:
                expected = ", ".join(self.sizes)
                raise ReplyError(f"labels names {head!r}; expected layers or parameters of label_rows: {expected}")
            index = self._indices(plan, classes, sizes)
            rows |= {name: index[index < size] for name, size in sizes.items() if name in plan.axes}
        return rows

    def _indices(self, plan: Plan, labels: Sequence[int], sizes: Mapping[str, int]) -> Tensor:
        """Return the indices of the rows to average. ``sizes`` has the number of rows of each parameter of a head.

        These are the rows of the classes in ``labels``. With ``extra_rows``, they also include the rows that belong to
        no class: all rows after the last row of the shortest parameter.
        """
        if cut := [name for name in sizes if name in plan.axes and plan.axes[name][0].local_size != sizes[name]]:
            raise ReplyError(
                f"the rows of {', '.join(cut)} belong to classes, but the plan holds only some of them: leave out of "
                f"label_rows what shrinks with the rate, or let build(rate) keep all rows"
            )
        number = min(sizes.values())
        try:
            classes = class_numbers(labels, number)
        except ReplyError as error:
            raise ReplyError(f"{error}, the rows of {', '.join(sizes)} (set label_rows to use others)") from error
        rest = torch.arange(number, max(sizes.values())) if self._extra_rows else classes[:0]
        return torch.cat([classes, rest])


def class_numbers(
    labels: Sequence[int] | Tensor, classes: int, unusable: type[ReplyError | DataError] = ReplyError
) -> Tensor:
    """Return the distinct class numbers in ``labels``, ascending.

    ``classes`` is the number of classes. ``unusable`` is the exception to raise for invalid labels.
    """
    expected = f"expected whole numbers from 0 to {classes - 1}"
    try:
        numbers = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise unusable(f"labels cannot be read ({error}): {expected}") from error
    if numbers.shape == (0,):
        return torch.empty(0, dtype=torch.long, device=numbers.device)
    if numbers.dtype not in _INTEGERS or numbers.dim() != 1:
        raise unusable(f"labels of type {numbers.dtype} in {numbers.dim()} dimensions: {expected}, in one")
    numbers = numbers.long()  # a narrow dtype cannot represent a large number of classes
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if wrong.numel():
        raise unusable(f"labels {wrong[:5].tolist()} are out of range (an ignore_index is no class): {expected}")
    distinct: Tensor = torch.unique(numbers)
    return distinct
