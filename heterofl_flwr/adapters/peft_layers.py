"""Adapter layers of peft: parameters with a rank axis, and attributes that depend on the rank."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn

from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError, extra
from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.label_rows import last_linear
from heterofl_flwr.elastic_models.cut_layers import adjust_layers

if TYPE_CHECKING:
    from peft import PeftModel

Layer = Any
"""A ``torch.nn.Module`` that is also a ``LoraLayer`` of peft; no type expresses both."""

RANK_AXES = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""Index of the rank axis of a LoRA layer's parameters, by the layer's attribute that holds them.

The layer adds ``scaling * B @ A``.
"""

STARTS = (True, False, "gaussian", "eva")
"""Values of ``init_lora_weights`` that leave the frozen weights unchanged and allow adapters of reduced rank."""

BASE = "base_model.model"
"""Path of the adapted model inside a ``PeftModel``; names in a ``LoraConfig`` are relative to it."""


def check_model(model: object) -> None:
    """Raise an error unless ``model`` is a ``PeftModel`` with one trainable LoRA adapter whose rank can be reduced."""
    with extra("lora"):  # imported here because it takes seconds to load
        from peft import LoraConfig, PeftModel
    if not isinstance(model, PeftModel):
        raise ConfigError(f"lora takes a PeftModel, as peft.get_peft_model returns one, got {type(model).__name__}")
    configs: Mapping[str, Any] = model.peft_config
    if len(configs) != 1:
        raise ConfigError(
            f"the model has the adapters {', '.join(configs)}; expected one: delete the others with delete_adapter"
        )
    (config,) = configs.values()
    if type(config) is not LoraConfig:
        raise ConfigError(f"the adapter's config is a {type(config).__name__}; expected a LoraConfig")
    if config.init_lora_weights not in STARTS:
        raise ConfigError(
            f"init_lora_weights is {config.init_lora_weights!r}, which changes the frozen weights or needs all of the "
            f"rank; expected one of {', '.join(map(str, STARTS))}"
        )
    if getattr(config, "ensure_weight_tying", False):
        raise ConfigError("ensure_weight_tying ties adapters to each other; expected a LoraConfig without it")
    layers = dict(lora_layers(model))
    faults = [
        f"layer {name} of type {type(layer).__name__} {fault}"
        for name, layer in layers.items()
        if (fault := find_fault(layer))
    ]
    if faults:
        raise UnsupportedLayerError(
            f"{'; '.join(faults[:5])}: leave such layers out of target_modules (or name them in exclude_modules)"
        )
    parameters = chain.from_iterable(adapter_parameters(layer).values() for layer in layers.values())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ConfigError("no adapter can be trained: load it with is_trainable=True, or set inference_mode=False")


def lora_layers(model: "PeftModel") -> Iterator[tuple[str, Layer]]:
    """Yield pairs (name, layer) of the layers with an adapter. Names are relative to ``BASE``."""
    from peft.tuners.lora import LoraLayer

    named = model.get_submodule(BASE).named_modules()
    # A layer whose adapter was deleted is still a LoraLayer.
    return ((name, layer) for name, layer in named if isinstance(layer, LoraLayer) and layer.r)


def adapter_parameters(layer: Layer) -> dict[str, nn.Parameter]:
    """Return the adapter parameters of a layer by name."""
    parts = tuple(layer.adapter_layer_names)
    return {name: parameter for name, parameter in layer.named_parameters() if name.partition(".")[0] in parts}


def rank_axes(layer: Layer) -> dict[str, int]:
    """Return the index of the rank axis of each adapter parameter that has one."""
    parts = {name: name.partition(".")[0] for name in adapter_parameters(layer) if not name.endswith(".bias")}
    return {name: RANK_AXES[part] for name, part in parts.items() if part in RANK_AXES}


def find_fault(layer: Layer) -> str:
    """Return the reason why the rank of a layer's adapter cannot be reduced; '' if it can."""
    ((name, rank),) = layer.r.items()
    variant = type(getattr(layer, "lora_variant", {}).get(name)).__name__
    parameters = dict(layer.named_parameters())
    wrong = [path for path, axis in rank_axes(layer).items() if parameters[path].shape[axis] != rank]
    if isinstance(layer.get_base_layer(), nn.MultiheadAttention):
        return "overwrites its frozen weight, which other levels share, in each forward pass"
    if variant != "NoneType" and not variant.startswith("Dora"):
        return f"has an adapter of the kind {variant}, expected plain LoRA or DoRA"
    if wrong:
        return (
            f"has {', '.join(f'{path} {tuple(parameters[path].shape)}' for path in wrong)}, expected one axis of {rank}"
        )
    return ""


def set_ranks(full_model: "PeftModel", model: "PeftModel") -> None:
    """Set the ranks that ``model`` stores, also in its config, to the lengths of its parameters' rank axes.

    ``alpha`` changes too, so that the scaling (``alpha / r``, or ``alpha / sqrt(r)`` in rsLoRA) equals the
    scaling in ``full_model``.
    """
    adjust_layers(full_model, model)
    (name,) = model.peft_config
    config: Any = model.peft_config[name]
    ranks: dict[str, tuple[int, float]] = {}
    for (path, full_layer), (_, layer) in zip(lora_layers(full_model), lora_layers(model), strict=True):
        parameters = dict(layer.named_parameters())
        rank = next(parameters[part].shape[axis] for part, axis in rank_axes(layer).items())
        share = rank / full_layer.r[name]
        alpha = full_layer.lora_alpha[name] * (math.sqrt(share) if config.use_rslora else share)
        alpha = int(alpha) if float(alpha).is_integer() else alpha
        layer.r[name], layer.lora_alpha[name] = ranks[path] = rank, alpha
    (config.r, config.lora_alpha), _ = Counter(ranks.values()).most_common(1)[0]
    patterns = {f"^{re.escape(path)}": rank_and_alpha for path, rank_and_alpha in ranks.items()}
    config.rank_pattern = {path: rank for path, (rank, _) in patterns.items() if rank != config.r}
    config.alpha_pattern = {path: alpha for path, (_, alpha) in patterns.items() if alpha != config.lora_alpha}


def find_axes(full_layer: Layer, local: Layer) -> dict[str, Axes]:
    """Slicing rule of LoRA layers: return the axes of each adapter parameter."""
    local_parameters = dict(local.named_parameters())
    return {
        name: axes_between(parameter.shape, local_parameters[name].shape)
        for name, parameter in adapter_parameters(full_layer).items()
    }


def find_label_rows(model: "PeftModel") -> tuple[str, ...]:
    """Return the parameter names of the last linear layer if ``modules_to_save`` names it, or else ()."""
    (name,) = model.peft_config
    return tuple(rows for rows in last_linear(model) if f".modules_to_save.{name}." in rows)
