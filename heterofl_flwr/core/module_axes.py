"""Axes of the parameters of a smaller model, from the rules of its layers."""

from collections.abc import Mapping
from itertools import pairwise

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from heterofl_flwr.common.errors import ShapeError, UnsupportedLayerError, listed
from heterofl_flwr.core.axes import Axes, Axis, PrefixAxis
from heterofl_flwr.core.exchanged import exchanged_parameters, first_names
from heterofl_flwr.core.layer_rules import RULES, prefix_of_every_axis

_IMAGE_NORMS = nn.LayerNorm, nn.RMSNorm  # with a weight of several dimensions, if they normalise whole images


def find_module_axes(full_model: nn.Module, local: nn.Module) -> dict[str, Axes]:
    """Return the axes of each exchanged parameter of ``local``. A tied parameter occurs only under its first name."""
    expected, shapes = _find_shapes(full_model), _find_shapes(local)
    if unknown := [name for name in shapes if name not in expected]:
        raise ShapeError(
            f"the local model has parameters that the global model lacks: {listed(unknown)}; expected a build(rate) "
            f"whose layers have the same names at all rates"
        )
    if empty := [name for name, shape in shapes.items() if 0 in shape and 0 not in expected[name]]:
        raise ShapeError(
            f"parameters {listed(empty)} of the local model have no entries: round its widths up, as "
            f"heterofl_flwr.core.width does, so that one channel is left at the smallest rate"
        )
    layers = dict(local.named_modules(remove_duplicate=False))
    axes: dict[str, Axes] = {}
    for name, layer in full_model.named_modules(remove_duplicate=False):
        # A container's rule takes precedence over the rules of its children. A layer without parameters of its own may
        # be parametrized: its tensors are then in its child ``parametrizations``.
        parameters = dict(layer.named_parameters(recurse=False)) or dict(layer.named_parameters())
        ruled = parameters and all(f"{name}.{parameter}" in axes for parameter in parameters)
        if name in layers and not ruled:
            axes = _find_layer_axes(name, layer, layers[name]) | axes
    for name, shape in shapes.items():
        lengths = tuple(axis.local_size for axis in axes.get(name, ()))
        if name not in axes or lengths != shape or tuple(axis.size for axis in axes[name]) != expected[name]:
            raise ShapeError(
                f"parameter {name}: its rule gives {axes.get(name)}, but the model has {shape} of {expected[name]}"
            )
    _check_last_layer(full_model, local)
    axes = _without_tied(full_model, local, axes)
    if "plan_rule" not in vars(full_model):  # elastic knows the channels behind Flatten
        axes |= _find_flattened(full_model, axes)
    exchanged = exchanged_parameters(local)
    return {name: axes_of for name, axes_of in axes.items() if name in exchanged}


def _find_flattened(full_model: nn.Module, axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return new axes for layers behind Flatten or before Unflatten, with a ``PrefixAxis`` for the flattened channels.

    A linear or recurrent layer counts as behind Flatten if it follows a convolution and has several inputs for each
    channel. A linear layer counts as before Unflatten if a convolution follows it, it has several outputs for each
    channel, and no layer has as many inputs.
    """
    named = full_model.named_modules()
    layers = [(name, layer) for name, layer in named if _has_matrix(layer) and not isinstance(layer, _IMAGE_NORMS)]
    inputs = {parameter_axes[1].size for parameter_axes in axes.values() if len(parameter_axes) > 1}
    flattened = {}
    for (name_before, before), (name, layer) in pairwise(layers):
        if isinstance(before, _ConvNd) and isinstance(layer, nn.Linear | nn.RNNBase | nn.RNNCellBase):
            length = layer.in_features if isinstance(layer, nn.Linear) else layer.input_size
            dense_name, dense, number, channels = name, layer, 1, before.out_channels
        elif isinstance(before, nn.Linear) and isinstance(layer, _ConvNd) and before.out_features not in inputs:
            length, dense_name, dense, number, channels = before.out_features, name_before, before, 0, layer.in_channels
        else:
            continue
        several = length > channels and length % channels == 0
        parameters = dict(dense.named_parameters(prefix=dense_name)) if several else {}  # several with weight norm
        for parameter in parameters.keys() & axes.keys():
            *start, axis = axes[parameter][: number + 1]
            if len(start) == number and axis == Axis(length, axis.local_size):
                flattened[parameter] = (*start, PrefixAxis(length, axis.local_size), *axes[parameter][number + 1 :])
    return flattened


def _has_matrix(layer: nn.Module) -> bool:
    """Return True if a layer itself has a parameter of two or more dimensions.

    Tensors in ``layer.parametrizations`` count as parameters of the layer, not of the ``ParametrizationList``.
    """
    parts = [] if isinstance(layer, ParametrizationList) else [layer, *getattr(layer, "parametrizations", {}).values()]
    return any(parameter.dim() > 1 for part in parts for parameter in part.parameters(recurse=False))


def _check_last_layer(full_model: nn.Module, local: nn.Module) -> None:
    layers, smaller = (
        {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)}
        for model in (full_model, local)
    )
    if not layers or not smaller:
        return
    classifier, name = next(reversed(layers)), next(reversed(smaller))
    hidden, classes = _outputs(layers[name]), _outputs(layers[classifier])
    if name != classifier and _outputs(smaller[name]) == classes != hidden:
        raise ShapeError(
            f"layer {name}, the last of the local model, has {classes} outputs, as has {classifier}, the last of the "
            f"global model. In the global model, {name} is a hidden layer of {hidden} outputs, and the two would be "
            f"averaged: give the last layer the name {classifier} at every rate"
        )


def _outputs(layer: nn.Linear | _ConvNd) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _find_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter. A tied parameter is listed under each of its names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    if lazy := [name for name, parameter in named.items() if is_lazy(parameter)]:
        raise ShapeError(f"parameters {listed(lazy)} have no shape yet: run one batch through the model first")
    if complex_ones := [name for name, parameter in named.items() if parameter.is_complex()]:
        raise ShapeError(
            f"parameters {listed(complex_ones)} are complex, and only real numbers are averaged: hold real and "
            f"imaginary parts in a real parameter (torch.view_as_complex)"
        )
    return {name: tuple(parameter.shape) for name, parameter in named.items()}


def _find_layer_axes(name: str, full_layer: nn.Module, local: nn.Module) -> dict[str, Axes]:
    mine, its = (dict(layer.named_parameters(recurse=False)) for layer in (full_layer, local))
    # A parametrization replaces a layer's class by a new one.
    types = type_before_parametrizations(full_layer), type_before_parametrizations(local)
    kind, where = types[0].__name__, name or "(the model itself)"
    slices = [vars(layer).get("plan_rule") for layer in (full_layer, local)]  # set by elastic
    if slices.count(None) == 1:
        raise ShapeError(f"layer {where}: only one of the global and the local model is of elastic: build both with it")
    rule = slices[0] or RULES.find(full_layer)
    # A class that is defined inside ``build`` is a new object at each call, so only names are compared.
    names = {(layer_type.__module__, layer_type.__qualname__) for layer_type in types}
    if len(names) > 1 or mine.keys() != its.keys():
        raise ShapeError(
            f"layer {where} is {kind} with {list(mine)} in the global model, but {types[1].__name__} with "
            f"{list(its)} in the local one"
        )
    if rule is None and any(mine[parameter].shape != its[parameter].shape for parameter in mine):
        shapes = ", ".join(
            f"{parameter} {tuple(mine[parameter].shape)} -> {tuple(its[parameter].shape)}" for parameter in mine
        )
        raise UnsupportedLayerError(
            f"layer {where} of type {kind}: no rule says which entries a smaller one keeps ({shapes}). Add a rule: "
            f"@heterofl_flwr.core.register({kind}), a function of the full and the local layer that returns the axes "
            f"of each parameter (heterofl_flwr.core.axes_between(full.weight.shape, local.weight.shape), if the first "
            f"entries stay); rules exist for {', '.join(sorted(rule_type.__name__ for rule_type in RULES))}"
        )
    try:
        ruled = (rule or prefix_of_every_axis)(full_layer, local) or {}  # of a rule without return, too
    except ShapeError as error:
        raise ShapeError(f"layer {where} of type {kind}: {error}") from error
    parameters = dict(full_layer.named_parameters(remove_duplicate=False)) if rule else ruled
    if unknown := ruled.keys() - parameters.keys():
        raise ShapeError(
            f"layer {where} of type {kind}: its rule names {listed(unknown)}; expected names of its parameters: "
            f"{listed(parameters)}"
        )
    return {f"{name}.{parameter}" if name else parameter: axes for parameter, axes in ruled.items()}


def _without_tied(full_model: nn.Module, local: nn.Module, axes: Mapping[str, Axes]) -> dict[str, Axes]:
    full_names, local_names = first_names(full_model), first_names(local)
    for name, tied_to in local_names.items():
        if full_names[name] != tied_to:
            ties = (
                "one of its own" if name == target else f"tied to {target}" for target in (full_names[name], tied_to)
            )
            raise ShapeError(
                "parameter {} is {} in the global model, but {} in the local one: tie the same parameters at every "
                "rate".format(name, *ties)
            )
        if axes[name] != axes[tied_to]:
            raise ShapeError(
                f"parameter {tied_to} is {name} too, but their layers keep different entries of it: {axes[tied_to]} "
                f"and {axes[name]}"
            )
    return {name: axes[name] for name, tied_to in local_names.items() if name == tied_to}
