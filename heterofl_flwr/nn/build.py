"""What ``build`` gives: a new model for each message, and the plan of a rate, which is worked out once."""

import inspect
from collections import defaultdict
from collections.abc import Hashable, Mapping
from functools import wraps
from weakref import WeakKeyDictionary

import torch
from torch import nn

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.errors import ConfigError, first_line
from heterofl_flwr.nn.models import Build

_plans: WeakKeyDictionary[Build, dict[tuple[float, float], Plan]] = WeakKeyDictionary()
"""The plans of each function by two rates; they go with it, as there may be one for each message."""

_PARTS = ("num_groups", "groups", "num_heads", "heads", "n_heads", "num_attention_heads")
"""Attributes in which layers of torch, timm, transformers and ours hold their number of groups or heads."""


def check_build(build: Build) -> None:
    """Raise ``ConfigError`` unless it is a function that a rate can be given to."""
    expected = "expected a function from a rate to a model"
    if isinstance(build, nn.Module):
        raise ConfigError(f"build is a model, {type(build).__name__}; {expected}, such as the class itself")
    try:
        signature = inspect.signature(build)
    except TypeError:
        raise ConfigError(f"build is {build!r}; {expected}") from None
    except ValueError:  # what is not written in Python does not tell
        return
    try:
        signature.bind(1.0)
    except TypeError as error:
        name = getattr(build, "__name__", "build")
        raise ConfigError(f"{name}{signature} cannot be called with a rate alone ({error}); {expected}") from None


def called_with_rate(build: Build) -> Build:
    """Return the function with an error where it takes its argument for another thing, or returns no model."""

    @wraps(build)
    def called(rate: float) -> nn.Module:
        try:
            model = build(rate)
        except TypeError as error:
            raise ConfigError(
                f"build({rate:g}) fails ({first_line(error)}): its argument is a rate, of which widths follow, as in "
                f"heterofl_flwr.core.width(64, rate)"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"build({rate:g}) returns a {type(model).__name__}; expected a torch.nn.Module")
        return model

    return called


def new_model(build: Build, rate: float) -> nn.Module:
    """Return a new model of a rate, to train; the global random generators stay as they are."""
    # What is built in inference mode can never be trained.
    with torch.inference_mode(False), kept_random_state():
        return build(rate).train()


def plan_between(build: Build, top: float, rate: float) -> Plan:
    """Return the plan of a rate within the model of rate ``top``; each is worked out once."""
    try:
        plans = _plans.setdefault(build, {})
    except TypeError:  # what cannot be a key, or be referred to weakly
        plans = {}
    if (top, rate) not in plans:
        plans[top, rate] = Plan.of(new_model(build, top), new_model(build, rate))
    return plans[top, rate]


def equal_levels(build: Build, sizes: Mapping[float, Hashable]) -> list[str]:
    """Return which rates have one and the same model, and why as far as its layers tell.

    Models of equal ``sizes`` are the same. The sizes are given by rate, that of the global model first.
    """
    rates_by_size = defaultdict[Hashable, list[float]](list)
    for rate, size in sizes.items():
        rates_by_size[size].append(rate)
    equal = [rates for rates in rates_by_size.values() if len(rates) > 1]
    whole = build(next(iter(sizes))) if equal else nn.Identity()
    named = ((", ".join(map(level_name, rates)), build(rates[0])) for rates in equal)
    return [f"levels {names} build the very same model: {_why_equal(whole, model)}" for names, model in named]


def _why_equal(whole: nn.Module, smaller: nn.Module) -> str:
    """Return why a model has no smaller one: the first layer whose groups or heads cannot be fewer or narrower."""
    layers = dict(whole.named_modules())
    for name, layer in smaller.named_modules():
        (key, number, width), (_, full_number, full_width) = map(_parts, (layer, layers.get(name, layer)))
        what = f"{key.rpartition('_')[2]} of the layer {name} ({type(layer).__name__})"
        if 1 < number == width and full_number < full_width:
            return f"each of the {number} {what} has one channel, and none can have fewer"
        if 1 == number < full_number:
            return f"one of the {full_number} {what} is left, and it is kept whole"
    return "their widths are rounded to the same numbers, or do not follow the rate"


def _parts(layer: nn.Module) -> tuple[str, int, int]:
    """Return the attribute that holds a layer's number of groups or heads, this number, and the layer's width."""
    numbers = {key: own for key in _PARTS if isinstance(own := getattr(layer, key, None), int)}
    key, number = next(iter(numbers.items()), ("", 0))
    return key, number, min((len(own) for own in layer.parameters() if own.dim()), default=0)
