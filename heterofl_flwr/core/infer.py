"""Which classifier rows a client trained, from its reply alone.

A row whose class is masked out of the loss gets no gradient. Weight decay and momentum still shrink it, and FedProx's
pull holds it back, but all of these act on every such row alike: it comes back as what was sent times one factor, the
same for all of them. A row that was trained moves in a direction of its own.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

LabelRule = Literal["sent", "inferred", "none"]
"""Which classifier rows of a reply count: those of the classes it names, those that were trained, or all."""

ROUNDING = 1e-5
"""Of a row, in single precision, over the steps of a round."""

SHARE = 0.02
"""Of a change. In int8, rounding alone turns it by about a hundredth."""


def trained_rows(before: Mapping[str, Tensor], after: Mapping[str, Tensor], classes: int) -> list[int]:
    """Return the classes of which a row is no shrunk copy of what was sent.

    Parameters
    ----------
    before, after : Mapping[str, Tensor]
        The parameters whose rows belong to classes, as the client got and as it sent them.
    classes : int
        How many of the rows are those of classes.
    """
    # A bias has one entry a row, which always points the same way.
    names = [name for name, own in before.items() if own.dim() > 1] or list(before)
    old, new = (
        torch.cat([state[name][:classes].reshape(classes, -1).double() for name in names], 1)  # (classes, entries)
        for state in (before, after)
    )
    shrunk = (new * old).sum(1) / (old * old).sum(1).clamp(min=torch.finfo(old.dtype).tiny)  # (classes,)
    left = (new - shrunk.unsqueeze(1) * old).norm(dim=1)
    copied = left <= ROUNDING * old.norm(dim=1) + SHARE * (new - old).norm(dim=1)
    # A trained row may by chance point to where it came from, but it is not shrunk as all the others.
    common = shrunk[copied].median() if copied.any() else shrunk.new_ones(())
    copied &= (shrunk - common).abs() <= ROUNDING + SHARE * (1 - common).abs()
    trained: list[int] = (~copied).nonzero().flatten().tolist()
    return trained
