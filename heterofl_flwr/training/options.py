"""How a client trains, and the results of training and evaluation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, get_args

from torch import Tensor, nn

from heterofl_flwr.data.augment import check_augment
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import DECAY, ConfigError, check_fields, is_decay
from heterofl_flwr.nn.loss import Fill
from heterofl_flwr.training.device import Precision

JointLoss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From the masked logits of all outputs of a model, its own depth and width last, and the targets to the loss."""


class SeveralOutputs(Protocol):
    """A model with outputs that a step trains together: those of early exits, or of smaller widths."""

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each output, those of the model's own depth and width last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """One client's training in one round; the defaults are the paper's.

    Attributes
    ----------
    learning_rate
        Of SGD, in this round.
    epochs
        Passes over the client's data.
    batch_size
        Examples in a step.
    momentum, weight_decay
        Of SGD, on every parameter.
    clip
        The norm to which the gradient of all parameters together is clipped; None or 0 for no clipping.
    proximal
        FedProx's mu: each step also pulls towards the parameters that were received; 0 for no pull.
    mask_fill
        What becomes of the logits of classes that the client lacks: ``zero``, ``-inf`` or ``none``.
    augment
        How images are varied: a name in ``heterofl_flwr.data.AUGMENTS``.
    precision
        ``float32``, or ``bfloat16`` for the products of the forward and backward pass; parameters, norms and loss stay
        in float32.
    """

    learning_rate: float
    epochs: int = 5
    batch_size: int = 10
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 1.0
    proximal: float = 0.0
    mask_fill: Fill = "zero"
    augment: str = "none"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Validate all options at once."""
        check_augment(self.augment)
        check_fields(
            self,
            (
                ("learning_rate", 0 < self.learning_rate < math.inf, "a number over 0"),
                ("epochs", self.epochs >= 1, "1 or more"),
                ("batch_size", self.batch_size >= 1, "1 or more"),
                ("momentum", is_decay(self.momentum), DECAY),
                ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
                ("clip", 0 <= (self.clip or 0) < math.inf, "0 or more"),
                ("proximal", 0 <= self.proximal < math.inf, "0 or more"),
                ("precision", self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}"),
                ("mask_fill", self.mask_fill in get_args(Fill), f"one of {', '.join(get_args(Fill))}"),
            ),
        )


@dataclass(frozen=True, slots=True)
class TrainResult:
    """One client's training.

    Attributes
    ----------
    examples
        Number of the client's examples.
    loss, accuracy
        Means over all examples (words, of a text) of all epochs, as they were seen: before each step, and without the
        pull of FedProx.
    steps
        Steps of the optimiser.
    seconds
        Time that it took; not part of equality.
    """

    examples: int
    loss: float
    accuracy: float
    steps: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """One evaluation.

    Attributes
    ----------
    examples
        Number of examples, or of words of a text; with none, everything else is 0.
    loss
        Their mean loss.
    correct
        Number of right answers.
    perplexity
        Of a text; None for other data.
    """

    examples: int
    loss: float
    correct: int
    perplexity: float | None = None

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / self.examples if self.examples else 0.0

    def metrics(self, kind: str) -> dict[str, float]:
        """Return accuracy and loss, and the perplexity of a text, each with its kind: ``global-accuracy``."""
        values = {"accuracy": self.accuracy, "loss": self.loss, "perplexity": self.perplexity}
        return {f"{kind}-{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingJob:
    """A client's model and data, to be trained in one round.

    Attributes
    ----------
    model
        From a batch of inputs to logits, classes on axis 1; trained in place.
    split
        The client's examples.
    seed
        Made of run, round and partition, for example ``derive(seed, "train", server_round, partition)``.
    classes
        The classes that the client has: the loss is masked to them. None for all.
    step_share
        The share of its steps after which the client stops, over 0 and up to 1; rounded up to whole steps.
    joint_loss
        For a model with several outputs (``heterofl_flwr.nn.Exits``, ``Nested``), their loss, where not the last alone
        is trained. The engine ``plain`` trains it.
    towards
        What ``TrainOptions.proximal`` pulls each of the model's parameters to, in their order; empty for what was
        received. The engine ``plain`` does.
    """

    model: nn.Module
    split: Split
    seed: int
    classes: Sequence[int] | Tensor | None = None
    step_share: float = 1.0
    joint_loss: JointLoss | None = None
    towards: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        """Validate the share."""
        if not 0 < self.step_share <= 1:
            raise ConfigError(f"step_share is {self.step_share!r}; expected a number over 0 and up to 1")

    def limit_steps(self, steps: int) -> int:
        """Return the number of steps the client runs, of so many."""
        return math.ceil(Fraction(str(self.step_share)) * steps)
