"""The mask of a client's classes, built once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from heterofl_flwr.nn.loss import Fill, class_mask, mask_logits


class Masking:
    """Fills the logits of absent classes; None stands for no mask at all.

    The mask is built for the first logits, which tell how many classes the model has.
    """

    def __init__(self, classes: Sequence[int] | Tensor | None, fill: Fill) -> None:
        self._classes = None if classes is None else torch.as_tensor(classes)
        self._fill = fill
        self._mask: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits with those of absent classes filled."""
        if self._mask is None and self._classes is not None:
            self._mask = class_mask(self._classes, logits.shape[1]).to(logits.device)
        return mask_logits(logits, self._mask, self._fill)
