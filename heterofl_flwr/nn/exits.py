"""Models with early exits: a sequence of stages, each with a head."""

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
"""Argument ``blocks`` of ``shallow``, by model name. The blocks of the Transformer are its encoder layers. The other
models get exits (``with_exits``), and their blocks are these exits.
"""

Stage = tuple[nn.Module, nn.Module]
"""A stage of a model, and its head, which turns the stage's output into logits."""


class Exit(nn.Module):
    """A stage of a model, and its head."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head


class Exits(nn.Module):
    """A model with early exits: a sequence of stages, each with a head.

    A shallower model has the first exits of the full model. ``shallow(build, "exits.*", images)`` returns a function
    that builds the models of all depths.

    Parameters
    ----------
    stages : Iterable[tuple[nn.Module, nn.Module]]
        The stages in order, each with its head.
    ensemble : bool
        Whether evaluation returns the mean of all exits' logits (DepthFL) instead of the deepest exit's.
    deepest_only : bool
        Whether a client trains all its stages, but only one head: the head of its deepest exit. The server then
        averages each head only over the clients whose deepest exit has this head.
    """

    def __init__(self, stages: Iterable[Stage], *, ensemble: bool = False, deepest_only: bool = False) -> None:
        super().__init__()
        self.exits = nn.ModuleList(Exit(*stage) for stage in stages)
        if not self.exits:
            raise ConfigError("Exits has no stages; expected a list of pairs (stage, head)")
        self.ensemble, self.deepest_only = ensemble, deepest_only

    def forward(self, x: Tensor) -> Tensor:
        """Return the deepest exit's logits; in evaluation with ``ensemble``, the mean of all exits' logits."""
        if not self.training:
            # All heads are run, even if only one is returned, so that their batch norm is measured too.
            logits = self.all_logits(x)
            return torch.stack(logits).mean(0) if self.ensemble else logits[-1]
        for stage in self.exits:
            x = stage.get_submodule("body")(x)
        deepest: Tensor = stage.get_submodule("head")(x)
        return deepest

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each exit, the shallowest first."""
        logits = []
        for stage in self.exits:
            x = stage.get_submodule("body")(x)
            logits.append(stage.get_submodule("head")(x))
        return logits

    @property
    def label_rows(self) -> tuple[str, ...]:
        """Names of the parameters with a row for each class."""
        heads = {f"exits.{number}.head": stage.get_submodule("head") for number, stage in enumerate(self.exits)}
        return tuple(parameter for name, head in heads.items() for parameter in last_linear(head, name))

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of parameters that a client has but does not train."""
        if not self.deepest_only:
            return ()
        *earlier, deepest = self.exits
        trained = {id(parameter) for stage in earlier for parameter in stage.get_submodule("body").parameters()}
        trained |= {id(parameter) for parameter in deepest.parameters()}
        return tuple(name for name, parameter in self.named_parameters() if id(parameter) not in trained)


def find_untrained(model: nn.Module) -> tuple[str, ...]:
    """Return patterns of the parameters that a client has but does not train.

    These are the model's attribute ``untrained``, and those of ``Exits`` inside the model.
    """
    inner = {name: layer.untrained for name, layer in model.named_modules() if name and isinstance(layer, Exits)}
    names = (f"{prefix}.{name}" for prefix, names in inner.items() for name in names)
    return (*getattr(model, "untrained", ()), *names)


def with_exits(build: Build, *, ensemble: bool = False, deepest_only: bool = False) -> Build:
    """Return a function from a width rate to a model with an exit after each stage (``Exits``).

    ``build`` must return a ``CNN``, a ``PreResNet``, or a model for whose class ``split_stages`` has a rule.
    """
    return partial(_build_exits, build, ensemble, deepest_only)


def _build_exits(build: Build, ensemble: bool, deepest_only: bool, rate: float) -> Exits:
    return Exits(split_stages(build(rate)), ensemble=ensemble, deepest_only=deepest_only)


@singledispatch
def split_stages(model: nn.Module) -> Sequence[Stage]:
    """Split a model into stages, each with a new head.

    ``split_stages.register`` adds a rule for another model class. Without a rule, raise ``ConfigError``.
    """
    raise ConfigError(
        f"no rule says after which stages a {type(model).__name__} can end: add a rule with "
        f"heterofl_flwr.nn.exits.split_stages.register, or return heterofl_flwr.nn.Exits from your own build"
    )


@split_stages.register
def _(model: CNN) -> Sequence[Stage]:
    """Split before each pooling layer. Layer names lose their numbers: ``conv1`` and ``conv2`` become ``conv``."""
    stages: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, layer in model.features.named_children():
        if isinstance(layer, nn.MaxPool2d):
            stages.append(OrderedDict())
        stages[-1][name.rstrip(digits)] = layer
    return [_with_head(nn.Sequential(stage), model.linear.out_features) for stage in stages]


@split_stages.register
def _(model: PreResNet) -> Sequence[Stage]:
    """Split after each stage.

    The last head has the model's norm. Each earlier head has a copy of the next stage's first norm.
    """
    first_stage, *later_stages = model.stages.children()
    bodies = [nn.Sequential(OrderedDict(stem=model.stem, blocks=first_stage)), *later_stages]
    norms = [*(copy.deepcopy(stage.get_submodule("0.norm1")) for stage in later_stages), model.norm]
    return [
        _with_head(body, model.linear.out_features, scaler=model.scaler, norm=norm, relu=nn.ReLU())
        for body, norm in zip(bodies, norms, strict=True)
    ]


def _with_head(body: nn.Module, classes: int, **before: nn.Module) -> Stage:
    channels = [layer.out_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)][-1]
    linear = nn.Linear(channels, classes)
    nn.init.zeros_(linear.bias)
    return body, nn.Sequential(OrderedDict(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear))
