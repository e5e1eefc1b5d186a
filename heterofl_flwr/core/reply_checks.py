"""Checks of a client's reply before anything of it is used; and label rows, which count by class (the mask)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from operator import index
from reprlib import repr as shown
from typing import Literal

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, DataError, ReplyError, ShapeError
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.slice_plan import Plan

_SHOWN = 5

LARGEST_ENTRY = 1e15
"""Of a parameter. With it the sum of a billion clients of a billion examples each stays within single precision."""


def check_reply(
    state: Mapping[str, Tensor],
    plan: Plan,
    sub: Mapping[str, Tensor],
    weight: float = 1.0,
    largest: float = math.inf,
    *,
    norm_bound: float = 0.0,
) -> None:
    """Raise ``ReplyError`` that names what is wrong with a reply; ``norm_bound`` limits its distance to the state."""
    # Sums may be in single precision, where a weight out of its range would vanish or overflow.
    single = torch.finfo(torch.float32)
    faults = list(_name_faults(plan, sub))
    if not isinstance(weight, Real) or not (weight == 0 or single.tiny <= weight <= single.max):
        expected = f"expected 0 or a number from {single.tiny:.0e} to {single.max:.0e}"
        faults.insert(0, f"its weight is {weight!r}, {expected}")
    for name, shape in plan.shapes.items():
        if name in sub:
            faults += _tensor_faults(name, sub[name], shape, state[name].dtype)
    if not faults:
        faults = list(value_faults(sub, largest))
    if not faults and norm_bound and not (found := norm_between(sub, plan.extract(state))) <= norm_bound:
        faults = [f"its change has an L2 norm of {found:.4g}, expected up to {norm_bound:g} (norm_bound)"]
    _raise_if_any(faults)


def check_names(plan: Plan, names: Iterable[str]) -> None:
    """Raise ``ReplyError`` unless a reply has the parameters of its plan and no others."""
    _raise_if_any(list(_name_faults(plan, dict.fromkeys(names))))


def name_misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return which tensors have other names or shapes than is expected, as text; '' if all fit."""
    shapes, wanted = ({name: tuple(one.shape) for name, one in own.items()} for own in (found, expected))
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    return "; ".join(f"{name}: {shapes.get(name)}, expected {wanted.get(name)}" for name in wrong[:3])


def norm_between(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of the difference of two states, over all their entries, in double precision."""
    return math.hypot(*((own.double() - two[name]).norm().item() for name, own in one.items()))


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ReplyError(f"reply refused: {'; '.join(faults[:_SHOWN])}{more}")


def _name_faults(plan: Plan, sub: Mapping[str, object]) -> Iterator[str]:
    unknown = [name for name in sub if name not in plan.axes]
    missing = [name for name in plan.axes if name not in sub]
    for names, fault in ((unknown, "names are not in its plan"), (missing, "parameters of its plan are missing")):
        if names:
            shown = ", ".join(repr(name)[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")
            yield f"{len(names)} {fault} ({shown})"


def _tensor_faults(name: str, new: object, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(new, Tensor) or new.layout != torch.strided:
        yield f"{name} is {type(new).__name__}, expected a dense tensor"
    elif new.dtype != dtype:
        yield f"{name} is {new.dtype}, expected {dtype}"
    elif new.shape != shape:
        yield f"{name} has shape {tuple(new.shape)}, expected {shape}"


def value_faults(sub: Mapping[str, Tensor], largest: float = math.inf) -> Iterator[str]:
    """Yield which tensors have entries that are not finite, or are larger than is expected."""
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # No entry is larger than the norm, which is not finite if any entry is not, and costs a fraction of a look at
        # each. It can also overflow, so a norm that is too large only makes us look. Other types are not averaged.
        square = torch.dot(flat, flat).item() if flat.is_floating_point() else 0.0
        if math.isfinite(square) and square <= largest**2:
            continue
        if not flat.isfinite().all():
            yield f"{name} contains NaN or infinity"
        elif (found := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {found:.4g}, expected up to {largest:g}"


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LabelRows:
    """The parameters whose rows belong to classes, each with its number of rows; and which rows count for a client."""

    def __init__(self, state: Mapping[str, Tensor], names: Sequence[str], *, extra_rows: bool) -> None:
        missing = [name for name in names if name not in state or state[name].dim() == 0]
        if missing:
            raise ConfigError(f"label_rows names {', '.join(missing)}, which the model lacks or which has no rows")
        self.sizes = {name: state[name].shape[0] for name in names}
        self.most = max(self.sizes.values(), default=0)
        self._classes = min(self.sizes.values(), default=0)
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
        try:
            known = class_numbers(labels, self._classes)
        except ReplyError as error:
            raise ReplyError(f"{error}, the rows of {', '.join(self.sizes)} (label_rows names others)") from error
        rest = torch.arange(self._classes, self.most) if self._extra_rows else known[:0]
        return torch.cat([known, rest])


def class_numbers(
    labels: Sequence[int] | Tensor, classes: int, unusable: type[ReplyError | DataError] = ReplyError
) -> Tensor:
    """Return labels as a tensor, distinct and ascending."""
    expected = f"expected whole numbers from 0 to {classes - 1}"
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise unusable(f"labels cannot be read ({error}): {expected}") from error
    if given.shape == (0,):
        return torch.empty(0, dtype=torch.long)
    if given.dtype not in _INTEGERS or given.dim() != 1:
        raise unusable(f"labels of type {given.dtype} in {given.dim()} dimensions: {expected}, in one")
    given = given.long()  # in few bits the number of classes itself would wrap
    wrong = given[(given < 0) | (given >= classes)]
    if wrong.numel():
        raise unusable(f"labels {wrong[:5].tolist()} are out of range: {expected}")
    distinct: Tensor = torch.unique(given)
    return distinct


def whole_numbers(labels: Iterable[int]) -> list[int]:
    """Return classes, each once, ascending; raise an error if one is no whole number."""
    try:
        numbers = list(labels)
        # Python, numpy and torch have booleans, and each counts as 0 or 1.
        if any(isinstance(label, bool) or "bool" in str(getattr(label, "dtype", "")) for label in numbers):
            raise TypeError("a mask of booleans; name the classes, [label for label in range(10) if label in mine]")
        return sorted({index(label) for label in numbers})
    except TypeError as error:
        raise ConfigError(
            f"labels is {shown(labels)}; expected the classes of this client's data, as whole numbers: {error}"
        ) from error


LabelRule = Literal["sent", "none"]
"""Which classifier rows of a reply count: those of the classes it names, or all."""


def last_linear(model: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the parameters of a model's last linear layer, after a prefix; none where it has none."""
    layers = [(name, layer) for name, layer in model.named_modules(prefix=prefix) if isinstance(layer, nn.Linear)]
    return [own for name, layer in layers[-1:] for own, _ in layer.named_parameters(prefix=name)]


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
        if not isinstance(layer, nn.Linear) or name not in partners:  # a smaller model may have fewer blocks
            continue
        partner = partners[name]
        if not isinstance(partner, nn.Linear):
            raise ShapeError(f"layer {name} is Linear in the global model, but {type(partner).__name__} in a smaller")
        if partner.out_features == layer.out_features:
            # Of a layer with weight norm, what its weight is computed from.
            named_own = layer.named_parameters(prefix=name)
            found = tuple(own for own, tensor in named_own if tensor.shape[:1] == (layer.out_features,))
    return found
