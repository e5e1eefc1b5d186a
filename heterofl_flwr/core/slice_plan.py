"""Plans: which entries of each parameter a client holds, and which parameters are shared; regions: read or add to them.

A slice whose axes all keep a prefix is a plain view, so HeteroFL's own slices need no index tensors. An axis of several
parts appears as two, (parts, entries of a part), in everything of a region that is not in the client's shape.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, ShapeError, listed
from heterofl_flwr.core.axes import Axes, PrefixAxis, axes_between
from heterofl_flwr.core.layer_rules import find_module_axes
from heterofl_flwr.core.moving_slices import SliceFunction, prefix

Heads = Mapping[str, tuple[int, int]]
"""From a pattern of parameter names to (number of equal parts, axis)."""

Place = tuple[slice, ...]
"""A box in a tensor."""


@dataclass(frozen=True)
class Plan:
    """Entries of the global model's parameters that a client holds.

    A plan is a value: it never changes, holds no tensors, and two plans that hold the same entries are equal. Make
    one with ``Plan.of`` from two modules or with ``Plan.between`` from two sets of shapes.

    Attributes
    ----------
    axes : Mapping[str, Axes]
        For each parameter that the client holds, its axes.
    """

    axes: Mapping[str, Axes]

    @classmethod
    def of(
        cls,
        full_model: nn.Module,
        local: nn.Module,
        *,
        heads: Heads | None = None,
        slice_function: SliceFunction = prefix,
    ) -> "Plan":
        """Return the plan between a global and a local module, by the rules of their layers' types.

        It compares layers and shapes, and does not run the models. So it cannot notice where an axis is made of parts,
        as behind a concatenation or a bidirectional LSTM, whose first entries are not the first of each part: say so
        by ``heads``, or by a rule for the module around both layers (``register``), which every strategy then knows.

        Parameters
        ----------
        full, local : nn.Module
            The same architecture at two widths. Parameters count, buffers do not: running statistics are never
            exchanged.
        heads : Heads | None
            Parts of axes that the rules cannot know, for example the input of a linear layer behind a bidirectional
            LSTM: ``{"classifier.weight": (2, 1)}``. Patterns are those of ``fnmatch``.
        slice_function : SliceFunction
            Which entries an axis keeps.

        Raises
        ------
        UnsupportedLayerError
            If a layer's width differs and no rule is registered for its type.
        ShapeError
            If the local module is no slice of the full one.
        """
        return _build_plan(find_module_axes(full_model, local), heads, slice_function)

    @classmethod
    def between(
        cls,
        full_shapes: Mapping[str, Sequence[int]],
        local_shapes: Mapping[str, Sequence[int]],
        *,
        heads: Heads | None = None,
        slice_function: SliceFunction = prefix,
    ) -> "Plan":
        """Return the plan between two sets of parameters, given as name -> shape (or name -> tensor or array).

        A client may lack parameters of the global model, but it has none of its own. For the options see ``Plan.of``.
        """
        if unknown := set(local_shapes) - set(full_shapes):
            raise ShapeError(f"the global model has no parameter {listed(unknown)}; it has {listed(full_shapes)}")
        axes = {}
        for name in local_shapes:
            full_shape, local = (
                tuple(getattr(shape_or_tensor, "shape", shape_or_tensor))
                for shape_or_tensor in (full_shapes[name], local_shapes[name])
            )
            try:
                axes[name] = axes_between(full_shape, local)
            except ShapeError as error:
                raise ShapeError(f"parameter {name}: {error}") from error
        return _build_plan(axes, heads, slice_function)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each of the client's parameters."""
        return {name: tuple(axis.local_size for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def parameters(self) -> int:
        """The number of entries that the client holds."""
        return sum(map(prod, self.shapes.values()))

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self.axes.items()))

    def __hash__(self) -> int:
        """Plans that hold the same entries are equal, so they serve as keys."""
        return self._hash

    def __reduce__(self) -> tuple[type["Plan"], tuple[Mapping[str, Axes]]]:
        """Leave what was cached behind: the hash of a name differs from process to process."""
        return type(self), (self.axes,)

    def sliced(self, function: SliceFunction) -> "Plan":
        """Return the plan that keeps as many entries of each axis as this one, and these."""
        if function is not prefix:
            self.check_groups()
        return Plan({name: tuple(axis.sliced(function) for axis in axes) for name, axes in self.axes.items()})

    def check_groups(self) -> None:
        """Raise ``ConfigError`` if only a prefix keeps the groups or heads of each layer apart."""
        if dropped := [name for name, axes in self.axes.items() if any(isinstance(axis, PrefixAxis) for axis in axes)]:
            raise ConfigError(
                f"{listed(dropped)} keep a prefix of their groups or heads, with all channels of each; other slices "
                f"would have channels of several. Expected slice_rule='prefix', attention that keeps its heads and "
                f"makes them narrower, or a model made by elastic, which knows the channels of each group"
            )

    def contains(self, plan: "Plan") -> bool:
        """Whether every entry that another plan holds is held here too."""
        return all(
            name in self.axes and all(large.contains(small) for large, small in zip(self.axes[name], axes, strict=True))
            for name, axes in plan.axes.items()
        )

    def extract(self, global_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the client's slice of the global state: copies, contiguous, in the client's shapes."""
        self.check_state(global_state)
        return {name: Region(global_state[name].detach(), axes).read() for name, axes in self.axes.items()}

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the client's slice as parts of the state's own tensors, through which gradients go back to them."""
        self.check_state(state)
        return {name: Region(state[name], axes).part() for name, axes in self.axes.items()}

    def check_state(self, global_state: Mapping[str, Tensor]) -> None:
        """Raise ``ShapeError`` unless this plan was made for a model of these shapes."""
        for name, axes in self.axes.items():
            expected = tuple(axis.size for axis in axes)
            if name not in global_state:
                remedy = "ArrayRecord(build(rate).state_dict()) has the names that are expected"
                raise ShapeError(f"the global state has no parameter {name}; it has {listed(global_state)}: {remedy}")
            if tuple(global_state[name].shape) != expected:
                shape = tuple(global_state[name].shape)
                raise ShapeError(f"parameter {name} of the global state is {shape}, the plan was made for {expected}")


def _build_plan(axes: Mapping[str, Axes], heads: Heads | None, function: SliceFunction) -> Plan:
    """Return the plan of these axes with the given parts; a pattern that matches no parameter is an error."""
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
    return Plan(headed).sliced(function)


def check_patterns(what: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise ``ConfigError`` if a pattern matches no name."""
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ConfigError(f"{what}: no parameter matches {listed(idle)}; the parameters are {listed(names)}")


ALL = ("*",)
"""The patterns by which every parameter is shared. The others stay with their clients: LG-FedAvg; none: Standalone."""


def is_shared(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of some patterns, as ``fnmatch`` knows them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shared_part(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return the part of a plan that is shared; a pattern that fits no parameter is an error."""
    if tuple(patterns) == ALL:
        return plan
    check_patterns("shared", patterns, plan.axes)
    return Plan({name: axes for name, axes in plan.axes.items() if is_shared(name, patterns)})


class Region:
    """The entries of one tensor that one slice holds."""

    __slots__ = ("_index", "_local_shape", "_shape", "is_whole", "view")

    def __init__(self, tensor: Tensor, axes: Axes) -> None:
        opened, place, prefix, self._shape, self._local_shape, self.is_whole = _find_geometry(
            tuple([(axis.size, axis.local_size, axis.parts, axis.index is None) for axis in axes])
        )
        view = tensor if len(opened) == tensor.dim() else tensor.view(opened)
        self.view = view if self.is_whole else view[place]
        self._index = None if prefix else _build_index(axes, tensor.device)

    def part(self) -> Tensor:
        """Return the region in the client's shape; where it can be, a view of the tensor."""
        return (self.view if self._index is None else self.view[self._index]).reshape(self._local_shape)

    def read(self) -> Tensor:
        """Return a copy of the region, contiguous, in the client's shape."""
        tensor = self.view if self._index is None else self.view[self._index]
        return tensor.clone(memory_format=torch.contiguous_format).view(self._local_shape)

    def write(self, local: Tensor) -> None:
        """Put a client's tensor into the region."""
        self.view[... if self._index is None else self._index] = local.view(self._shape)

    def scale(self, factor: float) -> None:
        """Multiply the region by a number."""
        if self._index is None:
            self.view.mul_(factor)
        else:
            self.view[self._index] *= factor

    def add(self, local: Tensor, weight: float, rows: Tensor | None = None) -> None:
        """Add ``weight`` times a client's tensor to the region, or some rows of it if the first axis is held whole."""
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
    """Whether each axis keeps a prefix of itself, or of each of its parts, so that slicing gives a view and no copy."""
    return all(axis.index is None for axis in axes)


# A model has few distinct shapes, and every round asks about the same ones. Positions are no part of the key: random
# slices have others in each round, which would all be kept.
@lru_cache(maxsize=4096)
def _find_geometry(
    axes: tuple[tuple[int, int, int, bool], ...],
) -> tuple[tuple[int, ...], Place, bool, tuple[int, ...], tuple[int, ...], bool]:
    """Return the tensor's shape with parts as dimensions, the region in it, and whether that is a prefix.

    Then the region's shape, the client's, and whether the region is all of the tensor. An axis is given by its full
    and its kept length, its parts, and whether it keeps a prefix.
    """
    # An axis of 6 in 2 parts of which 4 are kept becomes two dimensions, (2, 3), and the region [:, :2] of them.
    dimensions: list[tuple[int, slice, int]] = []  # full length, slice and kept length of each
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
    """Return index tensors that broadcast to the region, one for each of its dimensions."""
    lists: list[Tensor] = []
    for axis in axes:
        if axis.parts > 1:
            lists.append(torch.arange(axis.parts, device=device))
        indices = range(axis.part[1]) if axis.index is None else axis.index
        lists.append(torch.tensor(indices, dtype=torch.long, device=device))
    return tuple(positions.view(-1, *[1] * (len(lists) - 1 - number)) for number, positions in enumerate(lists))
