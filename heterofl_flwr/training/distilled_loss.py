"""In-place distillation in a loop of the user's own: the loss with which the smaller models inside a client's learn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.nn.execution import call, device_of
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.nested import InnerWidth
from heterofl_flwr.training.joint_losses import nested_loss
from heterofl_flwr.training.step import Masking

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits and targets to a loss, such as ``nn.CrossEntropyLoss()``."""


@dataclass
class _Inside:
    """What is known of a model that an instruction brought: how smaller ones are built, and those that were."""

    build: Build
    rates: Sequence[float]
    widths: list[InnerWidth] | None = None

    def widths_of(self, model: nn.Module) -> list[InnerWidth]:
        """Return the smaller models, the smallest first; they are built in the first step, on the model's device."""
        if self.widths is None:
            device = device_of(model)
            self.widths = [InnerWidth(model, new_model(self.build, rate).to(device)) for rate in sorted(self.rates)]
        return self.widths


_INSIDE: WeakKeyDictionary[nn.Module, _Inside] = WeakKeyDictionary()


def note_inner_widths(model: nn.Module, build: Build, rates: Iterable[float]) -> None:
    """Note the rates of the smaller models inside one; ``distilled_loss`` builds them when it is first called."""
    _INSIDE[model] = _Inside(build, tuple(rates))


def distilled_loss(
    model: nn.Module,
    batch: tuple[object, Tensor],
    criterion: Criterion,
    *,
    labels: Iterable[int] | None = None,
    label_share: float = 0.25,
    weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Return the loss of a batch, in which the smaller models inside this one learn from its posterior.

    In place of ``criterion(model(inputs), targets)``, which it is at the smallest level and for slices that move. The
    larger the client, the more models it trains: a step of the largest of four levels takes about twice as long.

    Parameters
    ----------
    model : nn.Module
        What ``submodel`` returned for an instruction to train.
    batch : tuple[object, Tensor]
        What the model is called with (a tensor, a tuple of arguments, or a mapping of named ones), and the targets.
    criterion : Callable[[Tensor, Tensor], Tensor]
        From logits, (examples, classes), and targets to a loss.
    labels : Iterable[int] | None
        The classes of this client's data: the logits of all others are 0, in what ``criterion`` gets too. None: all.
    label_share : float
        Share of the criterion in what a smaller model learns from; the rest is the divergence from the posterior.
    weight : float
        Of what the smaller models learn, beside the model's own loss; 0 leaves them out.
    temperature : float
        Divides logits before they become posteriors; the divergence is multiplied by its square.
    """
    known = _INSIDE.get(model)
    if known is None:
        raise ConfigError(
            f"distilled_loss knows no smaller models inside this {type(model).__name__}: give it what submodel(...) "
            f"returned, not a wrapper or a copy of it"
        )
    inputs, targets = batch
    masking = Masking(None if labels is None else sorted(labels), "zero")

    def logits_of(output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 2:
            found = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ConfigError(f"the output of {type(model).__name__} is {found}; expected logits, (examples, classes)")
        return masking(output)

    own = logits_of(call(model, inputs))
    if not weight:
        return criterion(own, targets)
    inner = [logits_of(width.output(model, inputs)) for width in known.widths_of(model)]
    return nested_loss(
        [*inner, own], targets, criterion=criterion, weight=weight, temperature=temperature, label_share=label_share
    )
