"""``Plan``: the entries of each parameter that a client holds. ``Region``: these entries in a tensor."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, ShapeError, listed
from heterofl_flwr.core.axes import Axes, CoupledAxis, PrefixAxis, axes_between
from heterofl_flwr.core.exchanged import ALL, check_patterns, is_shared
from heterofl_flwr.core.module_axes import find_module_axes
from heterofl_flwr.core.slice_rules import SliceFunction, prefix

Heads = Mapping[str, tuple[int, int]]
"""Mapping from a pattern of parameter names to (number of equal parts, axis)."""

Place = tuple[slice, ...]
"""A box in a tensor: one Python slice for each dimension."""


@dataclass(frozen=True)
class Plan:
    """Entries of the global model's parameters that a client holds.

    A plan is immutable and contains no tensors. Plans with the same entries are equal. Make a plan with ``Plan.of``
    from two modules, or with ``Plan.between`` from two sets of shapes.

    Attributes
    ----------
    axes : Mapping[str, Axes]
        The axes of each parameter, with the entries that the client holds.
    """

    axes: Mapping[str, Axes]

    @classmethod
    def of(cls, full_model: nn.Module, local: nn.Module, *, heads: Heads | None = None) -> "Plan":
        """Return the plan of a local model inside a global model, by rules for the types of their layers.

        The models are not run. So this method cannot see that a layer's inputs have several parts, such as the two
        directions of a bidirectional LSTM or the tensors of a concatenation. To keep the first entries of each part,
        name the layer's input axis in ``heads``. Or register a rule (``register``) for the module that contains both
        the layer that makes the parts and the layer that reads them.

        Parameters
        ----------
        full_model, local : nn.Module
            The same architecture at two widths. Buffers are not compared, because they are never exchanged.
        heads : Heads | None
            Dictionary from a pattern of parameter names (``fnmatch``) to (number of parts, index of the axis). For a
            linear layer after a bidirectional LSTM: ``{"classifier.weight": (2, 1)}``.

        Raises
        ------
        UnsupportedLayerError
            If a layer's width differs and no rule is registered for its type.
        ShapeError
            If the local module is not a slice of the global module.
        ConfigError
            If a pattern of ``heads`` matches no parameter.
        """
        return _build_plan(find_module_axes(full_model, local), heads)

    @classmethod
    def between(
        cls,
        full_shapes: Mapping[str, Sequence[int]],
        local_shapes: Mapping[str, Sequence[int]],
        *,
        heads: Heads | None = None,
    ) -> "Plan":
        """Return the plan of a local model inside a global model, from the shapes of their parameters.

        Both arguments map names to shapes, tensors or arrays. The local model may lack parameters, but not add any. For
        ``heads`` see ``Plan.of``.
        """
        if unknown := set(local_shapes) - set(full_shapes):
            raise ShapeError(f"the global model has no parameter {listed(unknown)}; it has {listed(full_shapes)}")
        axes = {}
        for name in local_shapes:
            full_shape, local = (getattr(value, "shape", value) for value in (full_shapes[name], local_shapes[name]))
            try:
                axes[name] = axes_between(full_shape, local)
            except ShapeError as error:
                raise ShapeError(f"parameter {name}: {error}") from error
        return _build_plan(axes, heads)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the client's parameters, by name."""
        return {name: tuple(axis.local_size for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def parameters(self) -> int:
        """The number of entries that the client holds."""
        return sum(map(prod, self.shapes.values()))

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self.axes.items()))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type["Plan"], tuple[Mapping[str, Axes]]]:
        # Without cached values, because hashes of strings differ between processes.
        return type(self), (self.axes,)

    def sliced(self, function: SliceFunction) -> "Plan":
        """Return a plan of the same shapes, with the entries that ``function`` selects."""
        if function is not prefix:
            self.check_groups()
        return Plan({name: tuple(axis.sliced(function) for axis in axes) for name, axes in self.axes.items()})

    def check_groups(self) -> None:
        """Raise ``ConfigError`` if an axis allows no slice function other than ``prefix``."""
        if dropped := [name for name, axes in self.axes.items() if any(isinstance(axis, PrefixAxis) for axis in axes)]:
            raise ConfigError(
                f"{listed(dropped)} keep a prefix of their groups, heads or flattened channels; another rule "
                f"would keep parts of several groups, heads or channels. Expected slice_rule='prefix', attention "
                f"that keeps its heads and makes them narrower, or a model made by elastic, which knows the channels"
            )
        coupled = {name: [axis for axis in axes if isinstance(axis, CoupledAxis)] for name, axes in self.axes.items()}
        if uneven := [name for name, axes in coupled.items() if not all(axis.is_even for axis in axes)]:
            raise ConfigError(
                f"{listed(uneven)} have more entries of some channels than of others (where a part of each head is "
                f"rotated, say), so other channels would give a slice of another shape: expected slice_rule='prefix'"
            )

    def without(self, names: Collection[str]) -> "Plan":
        """Return the plan without the parameters ``names``."""
        return Plan({name: axes for name, axes in self.axes.items() if name not in names})

    def contains(self, plan: "Plan") -> bool:
        """Return True if this plan holds every entry that ``plan`` holds."""
        return all(
            name in self.axes and all(large.contains(small) for large, small in zip(self.axes[name], axes, strict=True))
            for name, axes in plan.axes.items()
        )

    def extract(self, global_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the client's entries of the global state, in the client's shapes."""
        self.check_state(global_state)
        return {name: Region(global_state[name].detach(), axes).read() for name, axes in self.axes.items()}

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the client's entries of ``state``, as views if possible. Gradients flow back to ``state``."""
        self.check_state(state)
        return {name: Region(state[name], axes).part() for name, axes in self.axes.items()}

    def check_state(self, global_state: Mapping[str, Tensor]) -> None:
        """Raise ``ShapeError`` if the global state lacks a parameter of the plan or has it in another shape."""
        for name, axes in self.axes.items():
            expected = tuple(axis.size for axis in axes)
            if name not in global_state:
                remedy = "ArrayRecord(build(rate).state_dict()) has the names that are expected"
                raise ShapeError(f"the global state has no parameter {name}; it has {listed(global_state)}: {remedy}")
            if tuple(global_state[name].shape) != expected:
                shape = tuple(global_state[name].shape)
                raise ShapeError(f"parameter {name} of the global state is {shape}, the plan was made for {expected}")


def _build_plan(axes: Mapping[str, Axes], heads: Heads | None) -> Plan:
    heads = heads or {}
    check_patterns("heads", heads, axes)
    headed = {}
    for name, plan_axes in axes.items():
        parts = {axis: number for pattern, (number, axis) in heads.items() if fnmatchcase(name, pattern)}
        try:
            with_parts = axes_between([axis.size for axis in plan_axes], [axis.local_size for axis in plan_axes], parts)
        except ShapeError as error:
            raise ShapeError(f"parameter {name} with heads {parts}: {error}") from error
        headed[name] = tuple(with_parts[number] if number in parts else axis for number, axis in enumerate(plan_axes))
    return Plan(headed).sliced(prefix)


def shared_part(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return a plan of only the parameters whose names match one of ``patterns``.

    Raise ``ConfigError`` if a pattern matches no parameter.
    """
    if tuple(patterns) == ALL:
        return plan
    check_patterns("shared", patterns, plan.axes)
    return Plan({name: axes for name, axes in plan.axes.items() if is_shared(name, patterns)})


class Region:
    """The entries of a slice in a global tensor, for reading and writing."""

    __slots__ = ("_index", "_local_shape", "_shape", "is_whole", "view")

    def __init__(self, tensor: Tensor, axes: Axes) -> None:
        opened, place, prefix, self._shape, self._local_shape, self.is_whole = _find_geometry(
            tuple([(axis.size, axis.local_size, axis.parts, axis.index is None) for axis in axes])
        )
        view = tensor if len(opened) == tensor.dim() else tensor.view(opened)
        self.view = view if self.is_whole else view[place]
        self._index = None if prefix else _build_index(axes, tensor.device)

    def part(self) -> Tensor:
        """Return the entries in the client's shape, as a view if possible."""
        return (self.view if self._index is None else self.view[self._index]).reshape(self._local_shape)

    def read(self) -> Tensor:
        """Return the client's slice of the tensor, as a contiguous copy."""
        tensor = self.view if self._index is None else self.view[self._index]
        return tensor.clone(memory_format=torch.contiguous_format).view(self._local_shape)

    def write(self, local: Tensor) -> None:
        """Copy a client's tensor into the slice's entries of the global tensor."""
        self.view[... if self._index is None else self._index] = local.view(self._shape)

    def scale(self, factor: float) -> None:
        """Multiply the entries by a number, in place."""
        if self._index is None:
            self.view.mul_(factor)
        else:
            self.view[self._index] *= factor

    def add(self, local: Tensor, weight: float, rows: Tensor | None = None) -> None:
        """Add ``weight`` times a client's tensor, in place.

        With ``rows``, add only these rows; the slice must then keep all rows of the tensor.
        """
        if rows is not None:
            added = local.reshape(self._shape)[rows].to(self.view.dtype)
            if self._index is None:
                self.view.index_add_(0, rows, added, alpha=weight)
            else:
                place = (rows.view(-1, *[1] * (added.dim() - 1)), *self._index[1:])
                self.view[place] = self.view[place].add_(added, alpha=weight)
        elif self._index is None:
            self.view.add_(local.view(self._shape) if self._shape != self._local_shape else local, alpha=weight)
        else:
            # Positions are distinct, so reading, adding and writing back counts each entry once.
            self.view[self._index] = self.view[self._index].add_(local.reshape(self._shape), alpha=weight)


def is_prefix(axes: Axes) -> bool:
    """Return True if every axis keeps its first entries, or the first entries of each part."""
    return all(axis.index is None for axis in axes)


# A model has few distinct shapes, and every round needs the same ones. Positions are not in the cache's key: random
# slices have new positions in each round, which would fill the cache.
@lru_cache(maxsize=4096)
def _find_geometry(
    axes: tuple[tuple[int, int, int, bool], ...],
) -> tuple[tuple[int, ...], Place, bool, tuple[int, ...], tuple[int, ...], bool]:
    """Return the shapes and Python slices for viewing a region of a tensor.

    Each axis is a tuple: full length, local length, number of parts, and True if it keeps a prefix. The results are

    1. the tensor's shape, with parts as separate dimensions,
    2. a Python slice for each of these dimensions: the prefix to keep, or ``slice(None)`` for the dimension of the
       parts and for an axis that does not keep a prefix,
    3. True if all axes keep a prefix,
    4. the region's shape, with parts as separate dimensions,
    5. the region's shape in the client's model,
    6. True if the region is the full tensor.
    """
    # If an axis of 6 entries in 2 parts keeps 4 entries, it becomes two dimensions, (2, 3), with the region [:, :2].
    dimensions: list[tuple[int, slice, int]] = []  # for each dimension: full length, slice, local length
    for length, number, parts, is_prefix in axes:
        if parts > 1:
            dimensions.append((parts, slice(None), parts))
        dimensions.append((length // parts, slice(number // parts) if is_prefix else slice(None), number // parts))
    opened, place, shape = zip(*dimensions, strict=True) if dimensions else ((), (), ())
    local = tuple(number for _, number, *_ in axes)
    return (
        opened,
        place,
        all(is_prefix for *_, is_prefix in axes),
        shape,
        local,
        local == tuple(length for length, *_ in axes),
    )


def _build_index(axes: Axes, device: torch.device) -> tuple[Tensor, ...]:
    """Return one index tensor for each dimension; together they broadcast to the region's shape."""
    lists: list[Tensor] = []
    for axis in axes:
        if axis.parts > 1:
            lists.append(torch.arange(axis.parts, device=device))
        indices = range(axis.part[1]) if axis.index is None else axis.index
        lists.append(torch.tensor(indices, dtype=torch.long, device=device))
    return tuple(positions.view(-1, *[1] * (len(lists) - 1 - number)) for number, positions in enumerate(lists))
