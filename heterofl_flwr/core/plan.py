"""Plans: which entries of each parameter a client holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import Tensor, nn

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.choose import Choose, prefix
from heterofl_flwr.core.region import Region, is_prefix, size_of
from heterofl_flwr.core.walk import axes_of_modules
from heterofl_flwr.errors import ConfigError, ShapeError

Heads = Mapping[str, tuple[int, int]]
"""From a pattern of parameter names to (number of equal parts, axis)."""


@dataclass(frozen=True)
class Plan:
    """Which entries of each parameter of the global model a client holds.

    A plan is a value: it never changes, holds no tensors, and two plans that hold the same entries are equal. Make
    one with ``Plan.of`` from two modules or with ``Plan.between`` from two sets of shapes.

    Attributes
    ----------
    axes : Mapping[str, Axes]
        For each parameter that the client holds, its axes.
    """

    axes: Mapping[str, Axes]

    @classmethod
    def of(cls, full: nn.Module, local: nn.Module, *, heads: Heads | None = None, choose: Choose = prefix) -> "Plan":
        """Return the plan between a global and a local module, by the rules of their layers' types.

        Parameters
        ----------
        full, local : nn.Module
            The same architecture at two widths. Parameters count, buffers do not: running statistics are never
            exchanged.
        heads : Heads | None
            Parts of axes that the rules cannot know, for example the input of a linear layer behind a bidirectional
            LSTM: ``{"classifier.weight": (2, 1)}``. Patterns are those of ``fnmatch``.
        choose : Choose
            Which entries an axis keeps.

        Raises
        ------
        UnsupportedLayerError
            If a layer's width differs and no rule is registered for its type.
        ShapeError
            If the local module is no slice of the full one.
        """
        return cls._finish(axes_of_modules(full, local), heads, choose)

    @classmethod
    def between(
        cls,
        full_shapes: Mapping[str, Sequence[int]],
        local_shapes: Mapping[str, Sequence[int]],
        *,
        heads: Heads | None = None,
        choose: Choose = prefix,
    ) -> "Plan":
        """Return the plan between two sets of parameters, given as name -> shape (or name -> tensor or array).

        A client may lack parameters of the global model, but it has none of its own. ``heads`` and ``choose`` are
        those of ``Plan.of``.
        """
        unknown = sorted(set(local_shapes) - set(full_shapes))
        if unknown:
            raise ShapeError(f"the global model has no parameter {_some(unknown)}; it has {_some(full_shapes)}")
        axes = {}
        for name, local in local_shapes.items():
            try:
                axes[name] = axes_between(_shape(full_shapes[name]), _shape(local))
            except ShapeError as error:
                raise ShapeError(f"parameter {name}: {error}") from error
        return cls._finish(axes, heads, choose)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each of the client's parameters."""
        return {name: tuple(axis.kept for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def parameters(self) -> int:
        """The number of entries that the client holds."""
        return sum(size_of(axes) for axes in self.axes.values())

    @cached_property
    def is_prefix(self) -> bool:
        """Whether every axis keeps a prefix, as HeteroFL's do."""
        return all(map(is_prefix, self.axes.values()))

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self.axes.items()))

    def __hash__(self) -> int:
        """Plans that hold the same entries are equal, so they serve as keys."""
        return self._hash

    def __reduce__(self) -> tuple[type["Plan"], tuple[Mapping[str, Axes]]]:
        """Leave what was cached behind: the hash of a name differs from process to process."""
        return type(self), (self.axes,)

    def chosen(self, choose: Choose) -> "Plan":
        """Return the plan that keeps as many entries of each axis as this one, and these."""
        return Plan({name: tuple(axis.chosen(choose) for axis in axes) for name, axes in self.axes.items()})

    def contains(self, other: "Plan") -> bool:
        """Whether every entry that ``other`` holds is held here too."""
        return all(
            name in self.axes and all(mine.contains(its) for mine, its in zip(self.axes[name], axes, strict=True))
            for name, axes in other.axes.items()
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
            expected = tuple(axis.full for axis in axes)
            if name not in global_state:
                raise ShapeError(f"the global state has no parameter {name}; it has {_some(global_state)}")
            if tuple(global_state[name].shape) != expected:
                found = tuple(global_state[name].shape)
                raise ShapeError(f"parameter {name} of the global state is {found}, the plan was made for {expected}")

    @classmethod
    def _finish(cls, axes: Mapping[str, Axes], heads: Heads | None, choose: Choose) -> "Plan":
        return cls(_with_heads(axes, heads or {})).chosen(choose)


def _with_heads(axes: Mapping[str, Axes], heads: Heads) -> Mapping[str, Axes]:
    """Return the axes with the given parts; a pattern that matches no parameter is a mistake."""
    idle = sorted(pattern for pattern in heads if not any(fnmatchcase(name, pattern) for name in axes))
    if idle:
        raise ConfigError(f"heads: no parameter matches {_some(idle)}; the parameters are {_some(axes)}")
    headed = {}
    for name, own in axes.items():
        parts = {axis: number for pattern, (number, axis) in heads.items() if fnmatchcase(name, pattern)}
        try:
            given = axes_between([axis.full for axis in own], [axis.kept for axis in own], parts)
        except ShapeError as error:
            raise ShapeError(f"parameter {name} with heads {parts}: {error}") from error
        headed[name] = tuple(given[number] if number in parts else axis for number, axis in enumerate(own))
    return headed


def _shape(value: Sequence[int]) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))


def _some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
