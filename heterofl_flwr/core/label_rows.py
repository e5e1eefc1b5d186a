"""Label rows: the rows of the classifier that belong to classes, and which of them count for a client (the mask)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ReplyError, ShapeError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LabelRows:
    """The parameters whose rows belong to classes, each with its number of rows; and which rows count for a client."""

    def __init__(
        self, state: Mapping[str, Tensor], names: Sequence[str], *, classes: int | None, extra_rows: bool
    ) -> None:
        missing = [name for name in names if name not in state or state[name].dim() == 0]
        if missing:
            raise ConfigError(f"label_rows names {', '.join(missing)}, which the model lacks or which has no rows")
        self.sizes = {name: state[name].shape[0] for name in names}
        self.most = max(self.sizes.values(), default=0)
        fewest = min(self.sizes.values(), default=0)
        if classes is not None and not 0 < classes <= fewest:
            raise ConfigError(f"{classes} classes do not fit label_rows {self.sizes}: expected 1 to {fewest}")
        self._classes = fewest if classes is None else classes
        self._extra_rows = extra_rows

    def held(self, plan: Plan, labels: Sequence[int] | None) -> Tensor | None:
        """Return the rows that count for a client, ascending, or None for all."""
        if labels is None:
            return None
        if not self.sizes:
            raise ReplyError("the reply names labels, but the aggregator has no label_rows: name them, or send none")
        cut = [name for name in self.sizes if name in plan.axes and plan.axes[name][0].kept != self.sizes[name]]
        if cut:
            raise ReplyError(f"the rows of {', '.join(cut)} belong to classes, but the plan holds only some of them")
        known = _read_labels(labels, self._classes)
        rest = torch.arange(self._classes, self.most) if self._extra_rows else known[:0]
        return torch.cat([known, rest])


def _read_labels(labels: Sequence[int], classes: int) -> Tensor:
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


LabelRule = Literal["sent", "inferred", "none"]
"""Which classifier rows of a reply count: those of the classes it names, those that were trained, or all."""

ROUNDING = 1e-5
"""The relative change of a row, in float32, by rounding over the steps of a round."""

SHARE = 0.02
"""Share of a change that may be rounding. In int8, rounding alone turns it by about a hundredth."""


def trained_rows(before: Mapping[str, Tensor], after: Mapping[str, Tensor], classes: int) -> list[int]:
    """Return the classes whose rows are not just shrunk copies of the rows that were sent.

    Both states hold the parameters whose rows belong to classes; only the first ``classes`` rows are read.
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


def find_label_rows(build: Callable[[float], nn.Module], mix: Mix) -> tuple[str, ...]:
    """Return the parameters whose rows belong to classes.

    A model may name them itself (``label_rows``). Otherwise they are those of the last linear layer whose outputs do
    not shrink with the rate.
    """
    full, small = build(mix.global_rate), build(mix.rates[-1])
    named = getattr(full, "label_rows", None)
    if named is not None:
        return tuple(named)
    partners = dict(small.named_modules())
    found: tuple[str, ...] = ()
    for name, layer in full.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        partner = partners.get(name)
        if not isinstance(partner, nn.Linear):
            raise ShapeError(f"layer {name} is Linear in the global model, but {type(partner).__name__} in a smaller")
        if partner.out_features == layer.out_features:
            prefix = f"{name}." if name else ""
            found = tuple(prefix + own for own, _ in layer.named_parameters(recurse=False))
    return found
