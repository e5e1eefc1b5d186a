"""Models of several depths: a shallower model has the first blocks of the full model."""

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate, level_name, rate_of
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.depth_checks import check_depths, refusing_layers_of
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.stacks import drop_blocks, find_stacks, stack_patterns

Rates = tuple[float, float]
"""The width rate and the depth rate of a level."""


@dataclass(frozen=True, eq=False)
class Shallow:
    """Function from a rate to a model with fewer blocks; ``shallow`` returns it."""

    build: Build
    blocks: str
    levels: Mapping[float, Rates]  # empty: the rate is the depth rate
    idle: Mapping[int, tuple[str, ...]]  # names of unused parameters, by number of dropped blocks

    def __call__(self, rate: float) -> nn.Module:
        """Return a new model of this rate.

        ``build`` makes the model at the level's width rate. Each stack keeps its first blocks: the depth rate times the
        number of its blocks, rounded up.
        """
        width_rate, depth_rate = self._rates(rate)
        model = self.build(width_rate)
        dropped = drop_blocks(model, find_stacks(model, self.blocks), depth_rate)
        if self.idle:  # the server must not average the unchanged values of idle parameters
            untrained = (*getattr(model, "untrained", ()), *self.idle.get(len(dropped), ()))
            setattr(model, "untrained", untrained)  # noqa: B010  # a module may hold anything
        return model

    def _rates(self, rate: float) -> Rates:
        if not self.levels:
            return 1.0, float(exact_rate(rate))
        if rate not in self.levels:
            levels = ", ".join(map(level_name, self.levels))
            raise ConfigError(f"level {level_name(rate)} is not in levels ({levels}): add its width and depth rates")
        return self.levels[rate]


def shallow(
    model: nn.Module | Build, blocks: str, example_inputs: object, *, levels: Mapping[str | float, Rates] | None = None
) -> Shallow:
    """Return a function from a rate to a model with fewer blocks, for ``HeteroFL(build=...)``.

    The smaller models keep the first blocks of each stack, at least one. A block has the same name in all models. The
    server averages each block over the clients that have it.

    Parameters
    ----------
    model : nn.Module | Callable[[float], nn.Module]
        The full model, or a function from a width rate to a model with all blocks, such as the result of ``elastic``.
    blocks : str
        Pattern (``fnmatch``) of the blocks' names, in which ``*`` matches no dot: ``"layers.*"``, or
        ``"stages.*.*"`` for several stacks. Blocks are children of ``nn.Sequential`` or ``nn.ModuleList``.
    example_inputs : object
        Input of the model: a tensor, a tuple of arguments or a mapping of keyword arguments. ``shallow`` runs the model
        on this input at every depth, and raises ``ShapeError`` if a shallower model fails. It warns if the model's code
        counts the blocks of a stack or takes blocks from the end (not where it does so with a copy, such as
        ``list(blocks)``), and if a shallower model has parameters that it does not train. The server averages an
        untrained parameter, such as a norm in a separate list, only over clients that train it. A parameter with at
        least one trained row counts as trained, for example a table with a row for each block. ``None`` skips the
        checks.
    levels : Mapping[str | float, tuple[float, float]] | None
        Width rate and depth rate of each level, such as ``{"a": (1, 1), "b": (0.7, 0.75)}``. Default: the width rate is
        1, and the depth rate is the level's rate.

    Examples
    --------
    >>> import torch
    >>> build = shallow(torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))), "*", torch.zeros(1, 3))
    >>> len(build(0.5))
    2
    """
    rates_by_level = _parse_levels((levels or {}).items())
    width_rates = [width_rate for width_rate, _ in rates_by_level.values()]
    own_layers: AbstractContextManager[None] = nullcontext()
    if isinstance(model, nn.Module):
        if any(width_rate != 1 for width_rate in width_rates):
            raise ConfigError(
                "a single model has one width: where levels differ in width, give elastic(model, example)"
            )
        own_layers, model = refusing_layers_of(model), partial(_copied, copy.deepcopy(model))
    with kept_random_state():
        full_model = model(max(width_rates, default=1.0))
    if not find_stacks(full_model, blocks):
        stacks = ", ".join(stack_patterns(full_model)) or "no stack of any"
        raise ConfigError(f"{blocks!r} names no blocks of {type(full_model).__name__}; it has {stacks}")
    if example_inputs is None:
        return Shallow(model, blocks, rates_by_level, {})
    with own_layers:
        idle, counted = check_depths(full_model, blocks, example_inputs)
    if counted:
        warnings.warn(
            f"the role of blocks changes with the depth: the code counts the blocks of {', '.join(sorted(counted))}, "
            f"or takes them from the end. A block that is averaged over several depths does another thing in each: "
            f"give such blocks names that the pattern leaves out, or let each block do the same at every depth",
            stacklevel=2,
        )
    if idle:
        names = ", ".join(dict.fromkeys(name for layer in idle.values() for name in layer))
        warnings.warn(
            f"shallower models hold {names} and do not train them: the server does not average these values",
            stacklevel=2,
        )
    return Shallow(model, blocks, rates_by_level, idle)


def read_levels(text: str) -> Mapping[float, Rates] | None:
    """Parse the setting ``model.shrink``, such as ``b=0.7:0.75,c=0.7:0.5``.

    Return a mapping from each level's rate to its (width rate, depth rate). Level ``a`` is (1, 1) by default. For the
    text ``width`` return None, and for ``depth`` an empty mapping.
    """
    if text in ("width", "depth"):
        return None if text == "width" else {}
    pairs = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=:]+)=([^=:]+):([^=:]+)", part)
        if match is None:
            raise ConfigError(
                f"{part.strip()!r} is no level with a width rate and a depth rate: write one like 'b=0.7:0.75', or "
                f"'width' or 'depth' for all levels"
            )
        pairs.append((match[1], (match[2], match[3])))
    return {1.0: (1.0, 1.0), **_parse_levels(pairs)}


def _parse_levels(pairs: Iterable[tuple[str | float, tuple[Any, Any]]]) -> dict[float, Rates]:
    parsed: dict[float, Rates] = {}
    for level, rates in pairs:
        if not isinstance(rates, Sequence) or len(rates) != 2:
            raise ConfigError(f"levels[{level!r}] is {rates!r}; expected its width and depth rate, such as (0.7, 0.75)")
        rate, (width_rate, depth_rate) = rate_of(level), rates
        if rate in parsed:
            raise ConfigError(f"level {level} is given twice: leave one of them out")
        parsed[rate] = float(exact_rate(width_rate)), float(exact_rate(depth_rate))
    return parsed


def _copied(model: nn.Module, rate: float) -> nn.Module:
    return copy.deepcopy(model)
