"""Plans: which entries of each parameter a client holds, and which parameters are shared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from torch import Tensor, nn

from heterofl_flwr.core.axes import Axes, PrefixAxis, axes_between
from heterofl_flwr.core.layer_rules import find_module_axes
from heterofl_flwr.core.regions import Region, is_prefix
from heterofl_flwr.core.slice_rules import SliceFunction, prefix
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
    def of(
        cls, full: nn.Module, local: nn.Module, *, heads: Heads | None = None, slice_function: SliceFunction = prefix
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
        return _build_plan(find_module_axes(full, local), heads, slice_function)

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
        unknown = sorted(set(local_shapes) - set(full_shapes))
        if unknown:
            raise ShapeError(f"the global model has no parameter {_some(unknown)}; it has {_some(full_shapes)}")
        axes = {}
        for name in local_shapes:
            full, local = (tuple(getattr(own, "shape", own)) for own in (full_shapes[name], local_shapes[name]))
            try:
                axes[name] = axes_between(full, local)
            except ShapeError as error:
                raise ShapeError(f"parameter {name}: {error}") from error
        return _build_plan(axes, heads, slice_function)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each of the client's parameters."""
        return {name: tuple(axis.kept for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def parameters(self) -> int:
        """The number of entries that the client holds."""
        return sum(map(prod, self.shapes.values()))

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

    def sliced(self, function: SliceFunction) -> "Plan":
        """Return the plan that keeps as many entries of each axis as this one, and these."""
        if function is not prefix:
            self.check_groups()
        return Plan({name: tuple(axis.sliced(function) for axis in axes) for name, axes in self.axes.items()})

    def check_groups(self) -> None:
        """Raise ``ConfigError`` if only a prefix keeps the groups or heads of each layer apart."""
        dropped = [name for name, axes in self.axes.items() if any(isinstance(axis, PrefixAxis) for axis in axes)]
        if dropped:
            raise ConfigError(
                f"{_some(dropped)} keep a prefix of their groups or heads, with all channels of each; other slices "
                f"would have channels of several. Expected slice_rule='prefix', attention that keeps its heads and "
                f"makes them narrower, or a model made by elastic, which knows the channels of each group"
            )

    def contains(self, other: "Plan") -> bool:
        """Whether every entry that ``other`` holds is held here too."""
        return all(
            name in self.axes and all(large.contains(small) for large, small in zip(self.axes[name], axes, strict=True))
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
                remedy = "ArrayRecord(build(rate).state_dict()) has the names that are expected"
                raise ShapeError(f"the global state has no parameter {name}; it has {_some(global_state)}: {remedy}")
            if tuple(global_state[name].shape) != expected:
                found = tuple(global_state[name].shape)
                raise ShapeError(f"parameter {name} of the global state is {found}, the plan was made for {expected}")


def _build_plan(axes: Mapping[str, Axes], heads: Heads | None, function: SliceFunction) -> Plan:
    """Return the plan of these axes with the given parts; a pattern that matches no parameter is an error."""
    heads = heads or {}
    _check_patterns("heads", heads, axes)
    headed = {}
    for name, own in axes.items():
        parts = {axis: number for pattern, (number, axis) in heads.items() if fnmatchcase(name, pattern)}
        try:
            given = axes_between([axis.full for axis in own], [axis.kept for axis in own], parts)
        except ShapeError as error:
            raise ShapeError(f"parameter {name} with heads {parts}: {error}") from error
        headed[name] = tuple(given[number] if number in parts else axis for number, axis in enumerate(own))
    return Plan(headed).sliced(function)


def _check_patterns(what: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise ``ConfigError`` if a pattern matches no name."""
    idle = sorted(pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names))
    if idle:
        raise ConfigError(f"{what}: no parameter matches {_some(idle)}; the parameters are {_some(names)}")


def _some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


ALL = ("*",)
"""The patterns by which every parameter is shared. The others stay with their clients: LG-FedAvg; none: Standalone."""


def is_shared(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of some patterns, as ``fnmatch`` knows them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shared_part(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return the part of a plan that is shared; a pattern that fits no parameter is an error."""
    if tuple(patterns) == ALL:
        return plan
    _check_patterns("shared", patterns, plan.axes)
    return Plan({name: axes for name, axes in plan.axes.items() if is_shared(name, patterns)})
