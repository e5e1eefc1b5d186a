"""New models from a user's function ``build``, and slicing plans between them."""

import inspect
from collections import defaultdict
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from functools import wraps
from reprlib import repr as shown
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heterofl_flwr.common.errors import ConfigError, first_line
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.nn.models import Build, is_named

_plans: WeakKeyDictionary[Build, dict[tuple[float, float], Plan]] = WeakKeyDictionary()
"""Cached plans of each build function, by (rate of the full model, rate of its slice).

The plans of a function are deleted with the function, because each message may make a new function.
"""


def check_build(build: Build) -> None:
    """Raise ``ConfigError`` if ``build`` is a model or cannot be called with a rate alone."""
    expected = "expected a function from a rate to a model"
    if isinstance(build, nn.Module):
        remedy = "the class, if it takes a rate, or elastic(model, example)"
        raise ConfigError(f"build is a model, {type(build).__name__}; {expected}: {remedy}")
    try:
        signature = inspect.signature(build)
    except TypeError:
        raise ConfigError(f"build is {shown(build)}; {expected}") from None
    try:
        signature.bind(1.0)
    except TypeError as error:
        name = getattr(build, "__name__", "build")
        raise ConfigError(f"{name}{signature} cannot be called with a rate alone ({error}); {expected}") from None


def called_with_rate(build: Build) -> Build:
    """Return a wrapper that raises ``ConfigError`` if ``build`` raises a ``TypeError`` or returns no module."""

    @wraps(build)
    def called(rate: float) -> nn.Module:
        try:
            model = build(rate)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"build({rate:g}) fails ({first_line(error)}): its argument is a rate, which scales the widths, as in "
                f"heterofl_flwr.core.width(64, rate), or width(64, rate, heads) where heads or groups divide it"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"build({rate:g}) returns a {type(model).__name__}; expected a torch.nn.Module")
        return model

    return called


def new_model(build: Build, rate: float, *, to_load: bool = False) -> nn.Module:
    """Return a new model of this rate, in training mode. Global random states do not change.

    Set ``to_load`` if a state will be loaded into the model: models of ``build_model`` then skip the slow
    initialisation of parameters.
    """
    values = _NoInitialValues() if to_load and is_named(build) else nullcontext()
    # A model that is built in inference mode can never be trained.
    with torch.inference_mode(False), kept_random_state(), values:
        return build(rate).train()


class _NoInitialValues(TorchFunctionMode):
    """Mode in which torch does not fill parameters with random numbers."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        return tensor if func in _FILLS and isinstance(tensor, nn.Parameter) else func(*args, **kwargs)


_FILLS = {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_}


def plan_between(build: Build, top: float, rate: float) -> Plan:
    """Return the plan that slices a model of ``rate`` out of a model of rate ``top``. Plans are cached."""
    try:
        plans = _plans.setdefault(build, {})
    except TypeError:  # the function is not hashable or has no weak references
        plans = {}
    if (top, rate) not in plans:
        plans[top, rate] = Plan.of(new_model(build, top), new_model(build, rate))
    return plans[top, rate]


def equal_levels(sizes: Mapping[float, Hashable]) -> list[str]:
    """Return one warning for each value in ``sizes`` that two or more rates have."""
    rates_by_size = defaultdict[Hashable, list[float]](list)
    for rate, size in sizes.items():
        rates_by_size[size].append(rate)
    return [
        f"levels {', '.join(map(level_name, rates))} build the very same model: its widths are rounded to the same "
        f"numbers, cannot be less than its groups or heads, or do not follow the rate"
        for rates in rates_by_size.values()
        if len(rates) > 1
    ]
