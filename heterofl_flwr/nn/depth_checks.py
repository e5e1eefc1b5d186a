"""Checks that a model works without its last blocks, and detection of code that counts or names the last blocks."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from heterofl_flwr.common.errors import ConfigError, ShapeError, first_line, listed
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.execution import call, tensors_in
from heterofl_flwr.nn.stacks import drop_blocks, find_stacks


@contextmanager
def refusing_layers_of(model: nn.Module) -> Iterator[None]:
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


class CountedError(TypeError):
    """Error that a watched stack of blocks raises when code calls ``len`` on it.

    It is a ``TypeError``, because ``[*blocks]`` calls ``len`` only as a hint, and ignores a ``TypeError`` of ``len``.
    """


class Watch:
    """Recorder of the stacks of blocks whose length the model's code needs."""

    def __init__(self) -> None:
        self.counted: set[str] = set()  # names of stacks
        self._inside = False  # True while the container's __getitem__ runs, which calls len itself

    def spy(self, name: str, container: type[nn.Module]) -> type[nn.Module]:
        """Return a subclass of ``container`` that detects code which needs the container's length.

        A negative index or step adds ``name`` to ``counted``. ``len`` raises ``CountedError`` until the name is in
        ``counted``.
        """

        def length(stack: Any) -> int:
            if name not in self.counted and not self._inside:
                raise CountedError(name)
            return len(stack._modules)

        def item(stack: Any, index: Any) -> object:
            numbers = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
            if any(isinstance(number, int) and number < 0 for number in numbers):
                self.counted.add(name)
            self._inside = True
            try:
                return getattr(container, "__getitem__")(stack, index)  # noqa: B009  # nn.Module itself has none
            finally:
                self._inside = False

        return type(container.__name__, (container,), {"__len__": length, "__getitem__": item})


@contextmanager
def watching(model: nn.Module, stacks: Collection[str]) -> Iterator[Watch]:
    """Context manager that observes the stacks with these names in a model."""
    watch = Watch()
    classes = [(stack, type(stack)) for stack in map(model.get_submodule, stacks)]
    for name, (stack, kind) in zip(stacks, classes, strict=True):
        stack.__class__ = watch.spy(name or "(the model itself)", kind)
    try:
        yield watch
    finally:
        for stack, kind in classes:
            stack.__class__ = kind


@kept_random_state()
def check_depths(model: nn.Module, blocks: str, inputs: object) -> tuple[dict[int, tuple[str, ...]], set[str]]:
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
        dropped = drop_blocks(model, stacks, depth_rate)
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
