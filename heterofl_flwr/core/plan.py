"""Plans: which entries of each parameter a client holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.layer_rules import find_rule, first_names, unsupported
from heterofl_flwr.core.slice_rule import SliceFunction, prefix
from heterofl_flwr.core.slices import Region, is_prefix, size_of
from heterofl_flwr.errors import ConfigError, ShapeError


def axes_of_modules(full: nn.Module, local: nn.Module) -> dict[str, Axes]:
    """Return the axes of every parameter of ``local``, in its order; a tied one has those of its first name alone."""
    expected = _shapes(full)
    found = _shapes(local)
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise ShapeError(f"the local model has parameters that the global model lacks: {', '.join(unknown[:5])}")
    layers = dict(local.named_modules(remove_duplicate=False))
    axes: dict[str, Axes] = {}
    for name, layer in full.named_modules(remove_duplicate=False):
        if name in layers and not _spoken_for(name, layer, axes):
            # What a container's rule said of its children stands.
            axes = _axes_of_layer(name, layer, layers[name]) | axes
    for name, shape in found.items():
        kept = tuple(axis.kept for axis in axes.get(name, ()))
        if name not in axes or kept != shape or tuple(axis.full for axis in axes[name]) != expected[name]:
            raise ShapeError(
                f"parameter {name}: its rule gives {axes.get(name)}, but the model has {shape} of {expected[name]}"
            )
    first = _first_names_of_both(full, local)
    for name, own in first.items():
        if axes[name] != axes[own]:
            raise ShapeError(
                f"parameter {own} is {name} too, but their layers keep different entries of it: {axes[own]} and "
                f"{axes[name]}"
            )
    return {name: axes[name] for name, own in first.items() if name == own}


def _first_names_of_both(full: nn.Module, local: nn.Module) -> dict[str, str]:
    """Return the first name of each of ``local``'s parameters, which both models tie alike."""
    whole, first = first_names(full), first_names(local)
    for name, own in first.items():
        if whole[name] != own:
            raise ShapeError(
                f"parameter {name} is {_tie(name, whole[name])} in the global model, but {_tie(name, own)} in the "
                f"local one: tie the same parameters at every rate"
            )
    return first


def _tie(name: str, first: str) -> str:
    return "one of its own" if name == first else f"tied to {first}"


def _spoken_for(name: str, layer: nn.Module, axes: Mapping[str, Axes]) -> bool:
    """Whether a container's rule gave the axes of all parameters of this layer."""
    own = [f"{name}.{parameter}" for parameter, _ in layer.named_parameters(recurse=False)]
    return bool(own) and all(parameter in axes for parameter in own)


def _axes_of_layer(name: str, full: nn.Module, local: nn.Module) -> dict[str, Axes]:
    mine = dict(full.named_parameters(recurse=False))
    its = dict(local.named_parameters(recurse=False))
    if type(full) is not type(local) or mine.keys() != its.keys():
        raise ShapeError(
            f"layer {name or '(the model itself)'} is {type(full).__name__} with {list(mine)} in the global model, "
            f"but {type(local).__name__} with {list(its)} in the local one"
        )
    rule = find_rule(full)
    try:
        if rule is not None:
            ruled: Mapping[str, Axes] = rule(full, local)
        else:
            ruled = {own: axes_between(mine[own].shape, mine[own].shape) for own in mine}
    except ShapeError as error:
        raise ShapeError(f"layer {name} of type {type(full).__name__}: {error}") from error
    if rule is None and any(mine[own].shape != its[own].shape for own in mine):
        shapes = ", ".join(f"{own} {tuple(mine[own].shape)} -> {tuple(its[own].shape)}" for own in mine)
        raise unsupported(name, full, f"no rule says which entries a smaller one keeps ({shapes})")
    return {f"{name}.{own}" if name else own: axes for own, axes in ruled.items()}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter under every name that the state dict knows it by."""
    named = dict(model.named_parameters(remove_duplicate=False))
    lazy = [name for name, parameter in named.items() if is_lazy(parameter)]
    if lazy:
        raise ShapeError(f"parameters {', '.join(lazy[:5])} have no shape yet: run one batch through the model first")
    return {name: tuple(parameter.shape) for name, parameter in named.items()}


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
        return cls._finish(axes_of_modules(full, local), heads, slice_function)

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
        for name, local in local_shapes.items():
            try:
                axes[name] = axes_between(_shape(full_shapes[name]), _shape(local))
            except ShapeError as error:
                raise ShapeError(f"parameter {name}: {error}") from error
        return cls._finish(axes, heads, slice_function)

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

    def sliced(self, function: SliceFunction) -> "Plan":
        """Return the plan that keeps as many entries of each axis as this one, and these."""
        return Plan({name: tuple(axis.sliced(function) for axis in axes) for name, axes in self.axes.items()})

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
    def _finish(cls, axes: Mapping[str, Axes], heads: Heads | None, slice_function: SliceFunction) -> "Plan":
        return cls(_with_heads(axes, heads or {})).sliced(slice_function)


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
