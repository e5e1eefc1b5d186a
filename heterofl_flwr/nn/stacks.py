"""Stacks of blocks in a model."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction

from torch import nn

from heterofl_flwr.core.levels import width

_STACKS = nn.Sequential, nn.ModuleList
"""Types of containers whose children can be dropped."""


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
        if isinstance(stack, _STACKS)
    }
    return {parent: names for parent, names in stacks.items() if names}


def stack_patterns(model: nn.Module) -> list[str]:
    """Return the pattern of the blocks of each stack in a model."""
    return [_join(name, "*") for name, layer in model.named_modules() if isinstance(layer, _STACKS)]


def _fits(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def drop_blocks(model: nn.Module, stacks: Mapping[str, list[str]], depth_rate: float | Fraction) -> list[str]:
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
