"""How a client trains."""

import math
from dataclasses import dataclass
from typing import get_args

from heterofl_flwr.core.decay import DECAY, is_decay
from heterofl_flwr.data.augment import check_augment
from heterofl_flwr.errors import check_fields
from heterofl_flwr.learn.precision import Precision
from heterofl_flwr.nn.loss import Fill


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
        """Refuse values that cannot be trained with, all at once."""
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
