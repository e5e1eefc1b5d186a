"""Models of several depths: a shallower model has the first blocks of the full model."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from heterofl_flwr.common.errors import ConfigError, ShapeError, first_line, listed
from heterofl_flwr.core.levels import exact_rate, level_name, rate_of
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.core.widths import width
from heterofl_flwr.nn.depth_roles import CountedError, Watch, watching
from heterofl_flwr.nn.execution import call, tensors_in
from heterofl_flwr.nn.models import Build

Rates = tuple[float, float]
"""The width rate and the depth rate of a level."""

STACKS = nn.Sequential, nn.ModuleList
"""Types of containers whose children can be dropped."""


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
        dropped = _drop(model, find_stacks(model, self.blocks), depth_rate)
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
        own_layers, model = _refusing_layers_of(model), partial(_copied, copy.deepcopy(model))
    with kept_random_state():
        full_model = model(max(width_rates, default=1.0))
    if not find_stacks(full_model, blocks):
        stacks = ", ".join(_join(name, "*") for name, layer in full_model.named_modules() if isinstance(layer, STACKS))
        raise ConfigError(
            f"{blocks!r} names no blocks of {type(full_model).__name__}; it has {stacks or 'no stack of any'}"
        )
    if example_inputs is None:
        return Shallow(model, blocks, rates_by_level, {})
    with own_layers:
        idle, counted = _check_depths(full_model, blocks, example_inputs)
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
        rate, (width_rate, depth_rate) = rate_of(level), rates
        if rate in parsed:
            raise ConfigError(f"level {level} is given twice: leave one of them out")
        parsed[rate] = float(exact_rate(width_rate)), float(exact_rate(depth_rate))
    return parsed


def _copied(model: nn.Module, rate: float) -> nn.Module:
    return copy.deepcopy(model)


@contextmanager
def _refusing_layers_of(model: nn.Module) -> Iterator[None]:
    """Context manager: raise ``ConfigError`` if backward passes of the model's copy reach the model's parameters."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad()
    try:
        yield
        used = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
    if used:
        raise ConfigError(
            f"a copy of {type(model).__name__} uses {listed(used)} of the model given: a function or hook in it refers "
            f"to the model. Write a method instead, or give a function from a rate to the model"
        )


def find_stacks(model: nn.Module, pattern: str) -> dict[str, list[str]]:
    """Return the names of the blocks that match ``pattern``, by the name of their stack.

    A block matches by its full name. The returned name is only the block's name inside the stack.
    """
    stacks = {
        parent: [
            child
            for child, block in stack._modules.items()
            if block is not None and _fits(_join(parent, child), pattern)
        ]
        for parent, stack in model.named_modules()
        if isinstance(stack, STACKS)
    }
    return {parent: names for parent, names in stacks.items() if names}


def _fits(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def _drop(model: nn.Module, stacks: Mapping[str, list[str]], depth_rate: float | Fraction) -> list[str]:
    """Remove blocks from a model in place, and return their names.

    Each stack keeps its first blocks: ``depth_rate`` times the number of its blocks, rounded up.
    """
    dropped = []
    for parent, names in stacks.items():
        # Not del stack[...]: nn.Sequential would rename the remaining blocks.
        modules = model.get_submodule(parent)._modules
        for child in names[width(len(names), depth_rate) :]:
            if modules.pop(child, None) is not None:
                dropped.append(_join(parent, child))
    return dropped


@kept_random_state()
def _check_depths(model: nn.Module, blocks: str, inputs: object) -> tuple[dict[int, tuple[str, ...]], set[str]]:
    """Run a model at every depth; return the names of unused parameters, and the names of counted stacks.

    The blocks are removed from ``model`` itself. Unused parameters are listed by number of dropped blocks: the full
    model uses them, and the shallower model has them but does not use them. A stack is counted if the model's code
    needs its length (``Watch``).
    """
    stacks, gone = find_stacks(model, blocks), 0
    with watching(model, stacks) as watch:
        modes, expected, every = _run_whole(model, inputs, watch)
    idle: dict[int, tuple[str, ...]] = {}
    depth_rates = {Fraction(number, len(names)) for names in stacks.values() for number in range(1, len(names))}
    for depth_rate in sorted(depth_rates, reverse=True):
        dropped = _drop(model, stacks, depth_rate)
        gone += len(dropped)
        used = _run_without(model, dropped, inputs, modes, expected)
        if unused := tuple(name for name, _ in model.named_parameters() if name in every - used):
            idle[gone] = unused
    return idle, watch.counted


def _run_whole(model: nn.Module, inputs: object, watch: Watch) -> tuple[list[bool], tuple[int, ...], set[str]]:
    """Return the modes in which a model runs without an error (True: training), and the results of ``_run``.

    Add the names of the stacks on which the model's code calls ``len`` to ``watch.counted``.
    """
    modes = [True, False]
    while True:
        try:
            expected, every = _run(model, inputs, modes)
            break
        except CountedError as error:
            watch.counted.add(str(error))
        except Exception:  # in training mode a model may need more inputs, such as targets
            if True not in modes:
                raise
            modes.remove(True)
    if expected is None:
        raise ConfigError(
            f"{type(model).__name__} returned no tensor: let it return tensors, or tuples, dicts or dataclasses of them"
        )
    return modes, expected, every


def _run_without(
    model: nn.Module, dropped: Sequence[str], inputs: object, modes: Sequence[bool], expected: tuple[int, ...]
) -> set[str]:
    """Return the parameters that a model uses after the blocks ``dropped`` were removed.

    Raise ``ShapeError`` if the model fails or its first output's shape is not ``expected``.
    """
    try:
        shape, used = _run(model, inputs, modes)
        fault = "" if shape == expected else f"it returns {shape}, not {expected}"
    except Exception as error:  # the model's code may raise anything
        fault = first_line(error)
    if fault:
        raise ShapeError(
            f"the model does not work without {', '.join(dropped)} ({fault}): only a block whose input and output "
            f"have the same shape can be dropped, and its code must go over its blocks as in 'for block in "
            f"self.blocks', not by number. Name other blocks, or give each depth a head of its own "
            f"(heterofl_flwr.nn.with_exits)"
        )
    return used


def _run(model: nn.Module, inputs: object, modes: Sequence[bool]) -> tuple[tuple[int, ...] | None, set[str]]:
    """Run a model in each mode; return its first output's shape, and the names of parameters with gradients."""
    model.zero_grad()
    for mode in modes:
        for layer in model.modules():
            layer.training = mode and not isinstance(layer, _NormBase)  # batch norm refuses to train on one example
        leaves = list(tensors_in(call(model, inputs)))
        if ends := [leaf.sum() for leaf in leaves if leaf.requires_grad]:
            torch.autograd.backward(ends)  # torch.autograd.grad refuses models with torch.utils.checkpoint
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    return (tuple(leaves[0].shape) if leaves else None), used
