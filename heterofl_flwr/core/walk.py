"""Walk through two modules side by side and collect the axes of their parameters from the registered rules."""

from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.rules import find_rule, unsupported
from heterofl_flwr.core.ties import first_names
from heterofl_flwr.errors import ShapeError


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
