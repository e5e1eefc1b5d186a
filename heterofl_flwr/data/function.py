"""Data from a user's own function, named as ``module:function``."""

import importlib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from heterofl_flwr.data.dataset import Dataset, Split
from heterofl_flwr.errors import DataError

_EXPECTED = "expected a Dataset or ((train inputs, train targets), (test inputs, test targets))"


def from_function(name: str) -> Dataset:
    """Call ``module:function`` and return its data.

    It may return a ``Dataset``, or two pairs of arrays or tensors. These are used as they are, only floats and bytes
    become float32: normalise them first. The number of classes is the largest target plus one.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"{name}: the module {module_name} cannot be imported ({error}); is it on PYTHONPATH?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{name}: {module.__file__} has no function {function_name}")
    made = function()
    if isinstance(made, Dataset):
        return made
    if not _is_pair(made) or not all(_is_pair(part) for part in made):
        raise DataError(f"{name} returned {type(made).__name__}; {_EXPECTED}")
    train, test = (
        _split(cast("tuple[object, object]", part), f"{name}, {title} split")
        for title, part in zip(("train", "test"), made, strict=True)
    )
    classes = 1 + max(int(split.targets.max()) if len(split) else 0 for split in (train, test))
    return Dataset(name, train, test, classes)


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _split(pair: tuple[object, object], place: str) -> Split:
    inputs, targets = (_tensor(value, place) for value in pair)
    if targets.is_floating_point() or targets.is_complex():
        raise DataError(f"{place}: targets are {targets.dtype}; expected class numbers, as integers from 0")
    whole = not inputs.is_floating_point() and inputs.dtype != torch.uint8
    try:
        return Split(inputs.to(torch.int64 if whole else torch.float32), targets.to(torch.int64))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _tensor(value: object, place: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{place}: {type(value).__name__} is no array of numbers ({error}); {_EXPECTED}") from error
