"""Models with early exits: stages in a row, each with a head of its own, so that a model may end after any of them."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, singledispatch
from string import digits
from types import MappingProxyType

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.label_rows import last_linear
from heterofl_flwr.nn.models import CNN, Build
from heterofl_flwr.nn.preresnet import PreResNet

BLOCKS: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys(("cnn", "preresnet18", "preresnet18-later", "preresnet50"), "exits.*"), "transformer": "encoder.*"}
)
"""The blocks by which our models differ in depth: whole exits, or those of the Transformer, which needs no exits."""

Stage = tuple[nn.Module, nn.Module]
"""A part of a model, and the head that makes logits of what it returns."""


class Exit(nn.Module):
    """A stage and its head."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head


class Exits(nn.Module):
    """A model with early exits: a stage with a head, then the next stage with the next head, and so on.

    A shallower model has the first exits of a deeper one; ``shallow(build, "exits.*", images)`` builds both.

    Parameters
    ----------
    stages : Iterable[tuple[nn.Module, nn.Module]]
        Each stage and its head, from the first on.
    ensemble : bool
        Whether evaluation returns the mean of all exits' logits (DepthFL) instead of those of the deepest.
    deepest_only : bool
        Whether clients train the deepest of their exits alone. They hold the heads of the others, which then do not
        count in the mean.
    """

    def __init__(self, stages: Iterable[Stage], *, ensemble: bool = False, deepest_only: bool = False) -> None:
        super().__init__()
        self.exits = nn.ModuleList(Exit(*stage) for stage in stages)
        if not self.exits:
            raise ConfigError("Exits was given no stages; expected one or more, each with its head")
        self.ensemble, self.deepest_only = ensemble, deepest_only

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the deepest exit or, in evaluation and with ``ensemble``, the mean over all exits."""
        if not self.training:
            # All heads are run, also where one is asked for, so that their batch norm is measured too.
            logits = self.all_logits(x)
            return torch.stack(logits).mean(0) if self.ensemble else logits[-1]
        for stage in self.exits:
            x = stage.get_submodule("body")(x)
        deepest: Tensor = stage.get_submodule("head")(x)
        return deepest

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of all exits, the shallowest first."""
        logits = []
        for stage in self.exits:
            x = stage.get_submodule("body")(x)
            logits.append(stage.get_submodule("head")(x))
        return logits

    @property
    def label_rows(self) -> tuple[str, ...]:
        """The parameters whose rows belong to classes: those of each head's last linear layer, if it has one."""
        heads = {f"exits.{number}.head": stage.get_submodule("head") for number, stage in enumerate(self.exits)}
        return tuple(parameter for name, head in heads.items() for parameter in last_linear(head, name))

    @property
    def untrained(self) -> tuple[str, ...]:
        """Patterns of the parameters that a client holds and does not train."""
        return tuple(f"exits.{number}.head.*" for number in range(len(self.exits) - 1)) if self.deepest_only else ()


def with_exits(build: Build, *, ensemble: bool = False, deepest_only: bool = False) -> Build:
    """Return the function from a width rate to a CNN or PreResNet with an exit after each stage; see ``Exits``."""
    return partial(_build_exits, build, ensemble, deepest_only)


def _build_exits(build: Build, ensemble: bool, deepest_only: bool, rate: float) -> Exits:
    return Exits(split_stages(build(rate)), ensemble=ensemble, deepest_only=deepest_only)


@singledispatch
def split_stages(model: nn.Module) -> Sequence[Stage]:
    """Return the stages of a model, each with a new head; ``split_stages.register`` adds a rule for a class."""
    raise ConfigError(
        f"no rule says after which stages a {type(model).__name__} can end: add a rule with "
        f"heterofl_flwr.nn.exits.split_stages.register, or return heterofl_flwr.nn.Exits from your own build"
    )


@split_stages.register
def _(model: CNN) -> Sequence[Stage]:
    """End the paper's CNN before each pooling; layers lose their numbers, so that all stages have the same names."""
    stages: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, layer in model.features.named_children():
        if isinstance(layer, nn.MaxPool2d):
            stages.append(OrderedDict())
        stages[-1][name.rstrip(digits)] = layer
    return [_with_head(nn.Sequential(stage), model.linear.out_features) for stage in stages]


@split_stages.register
def _(model: PreResNet) -> Sequence[Stage]:
    """End a PreResNet after each stage; before its head comes the norm that the next stage begins with."""
    first_stage, *later_stages = model.stages.children()
    bodies = [nn.Sequential(OrderedDict(stem=model.stem, blocks=first_stage)), *later_stages]
    norms = [*(copy.deepcopy(stage.get_submodule("0.norm1")) for stage in later_stages), model.norm]
    return [
        _with_head(body, model.linear.out_features, scaler=model.scaler, norm=norm, relu=nn.ReLU())
        for body, norm in zip(bodies, norms, strict=True)
    ]


def _with_head(body: nn.Module, classes: int, **before: nn.Module) -> Stage:
    """Return a stage with a head like the end of the paper's models."""
    channels = [layer.out_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)][-1]
    linear = nn.Linear(channels, classes)
    nn.init.zeros_(linear.bias)
    return body, nn.Sequential(OrderedDict(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear))
