"""Options and results of a client's training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, Decay, NotNegative, Positive, group
from heterofl_flwr.core.levels import exact_fraction
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.data.transforms import AugmentName
from heterofl_flwr.nn.loss import Fill
from heterofl_flwr.nn.penalty import AlignedQuadratic

JointLoss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Loss of a model with several outputs, such as one for each depth.

The first argument is a list with the masked logits of each output, the deepest or widest output last. The second
argument is the targets.
"""


@group
class TrainOptions:
    """Options of one client's training in one round; the defaults are the paper's."""

    learning_rate: Annotated[Positive, Field(alias="lr", description="learning rate of SGD, in the first round")]
    epochs: Count = 5
    """passes over a client's data in a round"""
    batch_size: Count = 10
    """number of examples in a step, or of rows of text for a Transformer"""
    momentum: Decay = 0.9
    """momentum of SGD; its buffers start at zero in each round"""
    weight_decay: NotNegative = 5e-4
    """weight decay on all parameters"""
    clip: Annotated[NotNegative | None, "a number of 0 or more"] = 1.0
    """upper bound on the norm of a step's gradient over all parameters together; 0 for no bound"""
    proximal: NotNegative = 0.0
    """weight of FedProx's penalty on the distance from the received parameters"""
    mask_fill: Fill = "zero"
    """value for logits of classes that the client lacks, in its loss and local accuracy; auto: zero, or -inf with
    fidelity=fixed
    """
    augment: AugmentName = Field(default="none", exclude=True)
    """augmentation of images: a name in AUGMENTS"""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of one client's training.

    Attributes
    ----------
    examples
        Number of the client's examples.
    loss, accuracy
        Means over the examples (for text: the words) of all steps, computed before each step changes the model. The
        loss is without penalties.
    steps
        Number of steps of the optimiser.
    """

    examples: int
    loss: float
    accuracy: float
    steps: int


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Result of one evaluation.

    Attributes
    ----------
    examples
        Number of examples, or of words of a text. If it is 0, loss and correct are 0.
    loss
        Mean loss.
    correct
        Number of correct predictions.
    perplexity
        Perplexity of a text; None for other data, and without examples.
    """

    examples: int
    loss: float
    correct: int
    perplexity: float | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions; 0 without examples."""
        return self.correct / self.examples if self.examples else 0.0

    def metrics(self, kind: str) -> dict[str, float]:
        """Return accuracy, loss and, for text, perplexity. ``kind="global"`` names them ``global-accuracy`` etc."""
        values = {"accuracy": self.accuracy, "loss": self.loss, "perplexity": self.perplexity}
        return {f"{kind}-{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingJob:
    """The training of one client in one round: model, data, seed, and options that differ by client.

    Attributes
    ----------
    model
        Module from a batch of inputs to logits with classes on axis 1. It is trained in place.
    split
        The client's examples.
    seed
        Random seed, for example ``derive(seed, "train", server_round, partition)``.
    classes
        The client's classes. The loss masks the logits of all other classes. None: no masking.
    step_share
        Fraction of the client's steps to run, above 0 and up to 1. The number of steps is rounded up.
    joint_loss
        Loss of a model with several outputs (``heterofl_flwr.nn.Exits``, ``Nested``). None: the ordinary loss of
        ``model(inputs)``. If a client has a joint loss, the engine ``plain`` replaces ``cohort`` for all clients.
    quadratic
        Quadratic penalty on the model's parameters, in addition to FedProx.
    penalty
        Function that returns a term to add to the loss of each batch. If a client has such a function, the
        engine ``plain`` replaces ``seats`` for this client, and ``cohort`` for all clients.
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
        if not 0 < self.step_share <= 1:
            raise ConfigError(f"step_share is {self.step_share!r}; expected a number over 0 and up to 1")

    def limit_steps(self, steps: int) -> int:
        """Return ``steps`` times ``step_share``, rounded up."""
        return math.ceil(exact_fraction(self.step_share) * steps)
