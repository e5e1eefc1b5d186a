"""Options of a client's training, and the results of training and evaluation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, Decay, NotNegative, Positive, group
from heterofl_flwr.data.augment import AugmentName
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn.loss import Fill
from heterofl_flwr.nn.penalty import AlignedQuadratic

JointLoss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From the masked logits of all outputs of a model, its own depth and width last, and the targets to the loss."""


class SeveralOutputs(Protocol):
    """A model with outputs that a step trains together: those of early exits, or of smaller widths."""

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each output, those of the model's own depth and width last."""


@group
class TrainOptions:
    """One client's training in one round; the defaults are the paper's."""

    learning_rate: Annotated[Positive, Field(alias="lr", description="learning rate of SGD, in the first round")]
    epochs: Count = 5
    """passes over a client's data in a round"""
    batch_size: Count = 10
    """samples in a step; rows of text for a Transformer"""
    momentum: Decay = 0.9
    """momentum of SGD, which begins anew each round"""
    weight_decay: NotNegative = 5e-4
    """weight decay on all parameters"""
    clip: Annotated[NotNegative | None, "a number of 0 or more"] = 1.0
    """largest norm of a step's gradient, of all parameters together; 0 for no limit"""
    proximal: NotNegative = 0.0
    """weight of FedProx's pull towards the parameters that were received"""
    mask_fill: Fill = "zero"
    """logits of classes that a client lacks, in its loss; auto: zero, or -inf with fidelity=fixed"""
    augment: AugmentName = Field(default="none", exclude=True)
    """how images are varied: a name in AUGMENTS"""


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
    quadratic
        Quadratic penalty on the model's parameters, apart from FedProx's; None without one.
    penalty
        Another term to add to the loss of each batch. The engine ``plain`` trains it.
    """

    model: nn.Module
    split: Split
    seed: int
    classes: Sequence[int] | Tensor | None = None
    step_share: float = 1.0
    joint_loss: JointLoss | None = None
    quadratic: AlignedQuadratic | None = None
    penalty: Callable[[], Tensor | float] | None = None

    def __post_init__(self) -> None:
        """Validate the share."""
        if not 0 < self.step_share <= 1:
            raise ConfigError(f"step_share is {self.step_share!r}; expected a number over 0 and up to 1")

    def limit_steps(self, steps: int) -> int:
        """Return how many of the given steps the client runs."""
        return math.ceil(Fraction(str(self.step_share)) * steps)
