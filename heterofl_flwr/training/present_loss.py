"""Loss of a client that has few of the classes, without the logits of the absent classes."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.nn.loss import Fill, class_mask
from heterofl_flwr.nn.transformer import Transformer
from heterofl_flwr.training.engines.structure import find_hook


class PresentLoss:
    """Function with the results of ``compute_loss`` up to rounding, for a Transformer and a client's classes.

    It computes the logits of the present classes alone. With WikiText2, a client has a ninth of the words, and the
    logits of all words would take most of a step's time.
    """

    def __init__(self, model: Transformer, present: Tensor, fill: Fill) -> None:
        self._model, self._fill = model, fill
        self._classes = present.nonzero().flatten()  # in ascending order
        self._first_absent = present.int().argmin()
        # Two columns stand for all absent classes: one that may be the target, and the sum of the others.
        others = len(present) - len(self._classes) - 1
        absent = (0.0, math.log(others) if others else -math.inf) if fill == "zero" else (-math.inf, -math.inf)
        self._absent = torch.tensor([absent], device=present.device)
        self._columns = torch.full_like(present, len(self._classes), dtype=torch.int64)
        self._columns[self._classes] = torch.arange(len(self._classes), device=present.device)

    @classmethod
    def find(cls, model: nn.Module, classes: Sequence[int] | Tensor | None, fill: Fill) -> Self | None:
        """Return the function for a model and its client, or None if all logits are needed."""
        if classes is None or fill == "none" or not isinstance(model, Transformer) or find_hook(model):
            return None
        is_own = getattr(model.forward, "__func__", None) is not Transformer.forward
        if is_own or type(model.decoder) is not nn.Sequential or type(head := model.decoder[-1]) is not nn.Linear:
            return None
        present = class_mask(classes, head.out_features).to(head.weight.device)
        return cls(model, present, fill) if 0 < present.sum() < len(present) else None

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch, and a boolean tensor, True for correct predictions."""
        logits = self._model.class_logits(inputs, self._classes).float().flatten(0, -2)  # (positions, present classes)
        targets = targets.flatten()
        every = torch.cat([logits, self._absent.expand(len(logits), -1)], 1)
        return F.cross_entropy(every, self._columns[targets]), self._predict(logits.detach()) == targets

    def _predict(self, logits: Tensor) -> Tensor:
        value, column = logits.max(1)
        predicted = self._classes[column]
        if self._fill == "-inf":
            return predicted
        # Absent classes have the logit 0. Among equal logits, argmax takes the first.
        wins = (value > 0) | ((value == 0) & (predicted < self._first_absent))
        return torch.where(wins, predicted, self._first_absent)
