"""Levels of a model with LoRA adapters: the same frozen model at every rate, with adapters of a lower rank."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from heterofl_flwr.adapters import peft_layers as layers
from heterofl_flwr.core.exchanged import exclude_parameters
from heterofl_flwr.core.layer_rules import register
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.widths import width

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(eq=False, kw_only=True)
class LoraLevels:
    """The function from a rate to a model with adapters of that share of their rank; ``lora`` makes it.

    Attributes
    ----------
    model : peft.PeftModel
        The model at the full rank, with the adapters that every level begins with.
    rank_axes : Mapping[str, int]
        By the name of each adapter parameter, which of its axes is the rank.
    frozen : tuple[str, ...]
        The parameters that all levels share and that are not exchanged.
    """

    model: "PeftModel"
    rank_axes: Mapping[str, int]
    frozen: tuple[str, ...]
    label_rows: tuple[str, ...]  # the parameters whose rows belong to classes
    device: torch.device  # of the frozen parameters when the adapters were made

    def __call__(self, rate: float) -> "PeftModel":
        """Return a new model of this rate: its adapters are copies of the first rows or columns of the full ones."""
        exact_rate(rate)
        # A deep copy takes what its memo already holds.
        memo: dict[int, object] = {id(parameter): parameter for parameter in map(self.model.get_parameter, self.frozen)}
        for name, axis in self.rank_axes.items():
            parameter = self.model.get_parameter(name)
            part = parameter.detach().narrow(axis, 0, width(parameter.shape[axis], rate))
            memo[id(parameter)] = nn.Parameter(
                part.clone(memory_format=torch.contiguous_format), parameter.requires_grad
            )
        model = copy.deepcopy(self.model, memo)
        layers.set_ranks(self.model, model)
        exclude_parameters(model, self.frozen)
        model.__dict__["label_rows"] = self.label_rows  # the strategy asks the model itself for them
        place = _find_device(self.model, self.frozen)
        return model if place == self.device else model.to(place)


def _find_device(model: nn.Module, frozen: Sequence[str]) -> torch.device:
    """Return the device of the frozen parameters."""
    return next((model.get_parameter(name).device for name in frozen), torch.device("cpu"))


def lora(peft_model: "PeftModel") -> LoraLevels:
    """Return ``build``, the function from a rate to a model whose adapters have that share of their rank.

    All models that it builds share the frozen parameters with the given one: they are in memory once, and are not
    exchanged, averaged or stored. Clients and server exchange the adapters, and what else is trained
    (``modules_to_save``, biases) whole. An adapter of rank r has the first ``ceil(rate * r)`` rows of A and columns of
    B. Its scaling stays that of the full rank, so it computes what the full model would if the other rows and columns
    were zero. Each model is a ``PeftModel``: ``save_pretrained`` writes its adapters as peft loads them.

    Parameters
    ----------
    peft_model : peft.PeftModel
        A model with one LoRA adapter, as ``peft.get_peft_model`` returns it, at the largest rank. Ranks and alphas may
        differ by layer; rsLoRA and DoRA are allowed.

    Raises
    ------
    ConfigError
        If it is no such model.
    UnsupportedLayerError
        If the rank of a layer's adapter cannot be cut, as in a grouped convolution.
    MissingExtraError
        If peft is missing.

    Notes
    -----
    The frozen parameters must be the same on every client and on the server: load the same checkpoint. As levels share
    them, moving one level to another device, or to another precision, moves those of all.

    Examples
    --------
    ::

        model = AutoModelForCausalLM.from_pretrained(...)
        build = lora(get_peft_model(model, LoraConfig(r=16, lora_alpha=32)))
        strategy = HeteroFL(build, mix="a1-b1-c1-d1")  # ranks 16, 8, 4, 2
    """
    layers.check_model(peft_model)
    adapted = [(f"{layers.BASE}.{name}", layer) for name, layer in layers.lora_layers(peft_model)]
    register(*{type(layer) for _, layer in adapted})(layers.find_axes)  # peft has no module that all derive from
    of_adapters = {id(parameter) for _, layer in adapted for parameter in layers.adapter_parameters(layer).values()}
    named = peft_model.named_parameters()
    frozen = tuple(
        name for name, parameter in named if not parameter.requires_grad and id(parameter) not in of_adapters
    )
    build = LoraLevels(
        model=peft_model,
        rank_axes={
            f"{name}.{parameter}": axis
            for name, layer in adapted
            for parameter, axis in layers.rank_axes(layer).items()
        },
        frozen=frozen,
        label_rows=layers.find_label_rows(peft_model),
        device=_find_device(peft_model, frozen),
    )
    return replace(build, model=build(1.0))  # what is done with the given model changes no adapter
