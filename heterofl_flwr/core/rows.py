"""Rows of the classifier that count for the classes a client has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ReplyError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, slots=True)
class LabelRows:
    """The parameters whose rows belong to classes, and which rows count for a client.

    Attributes
    ----------
    sizes : Mapping[str, int]
        The number of rows of each such parameter.
    classes : int
        The number of classes.
    extra_rows : bool
        Whether rows beyond the classes count for every holder.
    """

    sizes: Mapping[str, int]
    classes: int
    extra_rows: bool

    @classmethod
    def of(
        cls, state: Mapping[str, Tensor], names: Sequence[str], *, classes: int | None, extra_rows: bool
    ) -> "LabelRows":
        """Return the rows of the named parameters; refuse names and numbers of classes that do not exist."""
        missing = [name for name in names if name not in state or state[name].dim() == 0]
        if missing:
            raise ConfigError(f"label_rows names {', '.join(missing)}, which the model lacks or which has no rows")
        sizes = {name: state[name].shape[0] for name in names}
        fewest = min(sizes.values(), default=0)
        if classes is not None and not 0 < classes <= fewest:
            raise ConfigError(f"{classes} classes do not fit label_rows {sizes}: expected 1 to {fewest}")
        return cls(sizes, fewest if classes is None else classes, extra_rows)

    @property
    def most(self) -> int:
        """The most rows that one of the parameters has."""
        return max(self.sizes.values(), default=0)

    def held(self, plan: Plan, labels: Sequence[int] | None) -> Tensor | None:
        """Return the rows that count for a client, ascending, or None for all; refuse labels out of range."""
        if labels is None:
            return None
        if not self.sizes:
            raise ReplyError("the reply names labels, but the aggregator has no label_rows: name them, or send none")
        cut = [name for name in self.sizes if name in plan.axes and plan.axes[name][0].kept != self.sizes[name]]
        if cut:
            raise ReplyError(f"the rows of {', '.join(cut)} belong to classes, but the plan holds only some of them")
        known = _classes_of(labels, self.classes)
        rest = torch.arange(self.classes, self.most) if self.extra_rows else known[:0]
        return torch.cat([known, rest])


def _classes_of(labels: Sequence[int], classes: int) -> Tensor:
    """Return the labels as a tensor, distinct and ascending."""
    expected = f"expected whole numbers from 0 to {classes - 1}"
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ReplyError(f"labels cannot be read ({error}): {expected}") from error
    if given.shape == (0,):
        return torch.empty(0, dtype=torch.long)
    if given.dtype not in _INTEGERS or given.dim() != 1:
        raise ReplyError(f"labels of type {given.dtype} in {given.dim()} dimensions: {expected}, in one")
    given = given.long()  # in few bits the number of classes itself would wrap
    wrong = given[(given < 0) | (given >= classes)]
    if wrong.numel():
        raise ReplyError(f"labels {wrong[:5].tolist()} are out of range: {expected}")
    distinct: Tensor = torch.unique(given)
    return distinct
