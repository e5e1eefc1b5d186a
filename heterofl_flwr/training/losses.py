"""The mask of a client's classes, built once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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


class Losses:
    """Masked cross entropy, as ``Masking`` and ``masked_cross_entropy`` have it for one client.

    Parameters
    ----------
    classes : Sequence[Sequence[int] | Tensor | None]
        The classes of each client; None for all.
    fill : Fill
        What becomes of the logits of other classes.
    """

    def __init__(self, classes: Sequence[Sequence[int] | Tensor | None], fill: Fill) -> None:
        self._classes, self._fill = classes, fill
        self._masked = any(own is not None for own in classes)
        self._absent: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor, clients: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return each client's loss and its number of right answers, both (clients,).

        Parameters
        ----------
        logits : Tensor
            (batch, clients, classes).
        targets : Tensor
            (batch, clients).
        clients : Sequence[int]
            Which ones they are of.
        """
        if self._masked:
            logits = self._fill_absent(logits, clients)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(0)
        return losses, (logits.detach().argmax(2) == targets).sum(0)

    def _fill_absent(self, logits: Tensor, clients: Sequence[int]) -> Tensor:
        absent = self._mask(logits)
        if self._fill == "none":
            return logits
        absent = absent if len(clients) == len(absent) else absent[list(clients)]
        return logits.masked_fill(absent, 0.0 if self._fill == "zero" else float("-inf"))

    def _mask(self, logits: Tensor) -> Tensor:
        if self._absent is None:
            number = logits.shape[2]
            self._absent = torch.stack(
                [
                    torch.zeros(number, dtype=torch.bool)
                    if classes is None
                    else ~class_mask(torch.as_tensor(classes), number).cpu()
                    for classes in self._classes
                ]
            ).to(logits.device)  # (clients, classes)
        return self._absent
