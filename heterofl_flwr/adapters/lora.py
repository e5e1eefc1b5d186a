"""LoRA adapters whose rank depends on the client's rate."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from heterofl_flwr.adapters import peft_layers as layers
from heterofl_flwr.core.exchanged import exclude_parameters
from heterofl_flwr.core.layer_rules import register
from heterofl_flwr.core.levels import exact_rate, width

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(eq=False, kw_only=True)
class LoraLevels:
    """Callable that ``lora`` returns. It builds the model of a rate.

    Attributes
    ----------
    model : peft.PeftModel
        The model at full rank, with the initial adapters.
    rank_axes : Mapping[str, int]
        Index of the rank axis, by parameter name.
    frozen : tuple[str, ...]
        Names of the frozen parameters.
    """

    model: "PeftModel"
    rank_axes: Mapping[str, int]
    frozen: tuple[str, ...]
    label_rows: tuple[str, ...]  # the parameters whose rows belong to classes
    device: torch.device  # device of the frozen parameters when ``lora`` was called

    def __call__(self, rate: float) -> "PeftModel":
        """Return a new model of this rate; its frozen parameters are those of ``model``, not copies."""
        exact_rate(rate)
        # deepcopy reuses the objects in its memo.
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
        model.__dict__["label_rows"] = self.label_rows  # the strategy reads this attribute
        place = _find_device(self.model, self.frozen)
        return model if place == self.device else model.to(place)


def _find_device(model: nn.Module, frozen: Sequence[str]) -> torch.device:
    return next((model.get_parameter(name).device for name in frozen), torch.device("cpu"))


def lora(peft_model: "PeftModel") -> LoraLevels:
    """Return a callable that builds the model of a rate, with adapters of reduced rank.

    Each adapter has ``rate`` times its full rank, rounded up: the first rows of A and the first columns of B, with
    the scaling factor of the full rank. All models share the frozen parameters of ``peft_model``, which are not sent,
    averaged or stored. Clients and server exchange the adapters and all other trained parameters
    (``modules_to_save``, biases). Each model is a ``PeftModel``, so peft can load the files that the model's
    method ``save_pretrained`` writes.

    Parameters
    ----------
    peft_model : peft.PeftModel
        A model with one LoRA adapter at the largest rank, made by ``peft.get_peft_model``. Ranks and alphas may
        differ by layer; rsLoRA and DoRA are supported.

    Raises
    ------
    ConfigError
        If ``peft_model`` is no ``PeftModel`` with exactly one LoRA adapter that can be trained, or if the adapter has
        unsupported options.
    UnsupportedLayerError
        If a layer's rank cannot be reduced, for example in a grouped convolution.
    MissingExtraError
        If peft is missing.

    Notes
    -----
    Load the same checkpoint on every client and on the server. Because the frozen parameters are shared, moving the
    model of one level to another device or precision moves the models of all levels.

    Examples
    --------
    ::

        model = AutoModelForCausalLM.from_pretrained(...)
        build = lora(get_peft_model(model, LoraConfig(r=16, lora_alpha=32)))
        strategy = HeteroFL(build, mix="a1-b1-c1-d1")  # ranks 16, 8, 4, 2
    """
    layers.check_model(peft_model)
    adapted = [(f"{layers.BASE}.{name}", layer) for name, layer in layers.lora_layers(peft_model)]
    register(*{type(layer) for _, layer in adapted})(layers.find_axes)  # these types have no common base class
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
    return replace(build, model=build(1.0))  # a copy of the adapters, so later changes of peft_model do not matter
