"""Aggregation of one round's replies, with checks."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, ReplyError
from heterofl_flwr.common.named_tensors import norm_between
from heterofl_flwr.core.aggregator import CheckedReply, OpenAggregator, Version
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.label_rows import LabelRows, Labels
from heterofl_flwr.core.slice_plan import Plan

LARGEST_ENTRY = 1e15
"""Upper bound on the magnitude of a reply's entries. A sum over a billion clients with a billion examples each then
fits float32.
"""

_SHOWN = 5


class Aggregation:
    """Aggregation of one round: checks each reply and adds it to an aggregator.

    Parameters
    ----------
    global_state : Mapping[str, Tensor]
        The global state before the round; not changed. Entries that no client holds keep their values.
    label_rows : Sequence[str]
        Parameters with one row for each class, such as ``["linear.weight", "linear.bias"]``. From a client with
        ``labels``, only the rows of these classes are averaged.
    aggregator : Callable[[Mapping[str, Tensor]], Aggregator]
        Function that makes the aggregator from the global state, such as ``CountingMean`` or
        ``partial(RobustMean, robust=Robust())``.
    extra_rows : bool
        Whether to average rows beyond the classes, such as the embedding of [MASK], over all clients that hold them. If
        False, they are averaged only over clients that send no labels (``Fidelity.extra_rows``).
    largest : float
        Upper bound on the magnitude of a reply's entries. By default, only NaN and infinity are rejected.
    norm_bound : float
        Upper bound on the L2 norm of a client's change; 0 for no bound.

    Attributes
    ----------
    replies : int
        Number of replies that passed the checks, including those of weight 0.

    Examples
    --------
    >>> state = {"linear.weight": torch.zeros(2, 4)}
    >>> aggregation = Aggregation(state, label_rows=["linear.weight"])
    >>> plan = Plan.between(state, {"linear.weight": (2, 2)})
    >>> aggregation.add(plan, {"linear.weight": torch.ones(2, 2)}, labels=[1])
    >>> aggregation.result()["linear.weight"]
    tensor([[0., 0., 0., 0.],
            [1., 1., 0., 0.]])
    """

    def __init__(
        self,
        global_state: Mapping[str, Tensor],
        label_rows: Sequence[str] = (),
        *,
        aggregator: OpenAggregator = CountingMean,
        extra_rows: bool = True,
        largest: float = math.inf,
        norm_bound: float = 0.0,
    ) -> None:
        self._state = {name: tensor.detach() for name, tensor in global_state.items()}
        self._label_rows = LabelRows(self._state, label_rows, extra_rows=extra_rows)
        self._aggregator = aggregator(self._state)
        self._largest, self._norm_bound = largest, norm_bound
        self._plans: set[Plan] = set()  # checked against the global state
        self._has_result = False
        self.replies = 0

    def add(
        self,
        plan: Plan,
        sub: Mapping[str, Tensor],
        *,
        labels: Labels | None = None,
        weight: float = 1.0,
        sent: Version | None = None,
    ) -> None:
        """Check a client's reply, and add it to the aggregator.

        Parameters
        ----------
        plan : Plan
            The slice that the client holds.
        sub : Mapping[str, Tensor]
            The client's parameters, in the plan's shapes and the global model's dtypes.
        labels : Sequence[int] | Mapping[str, Sequence[int]] | None
            The client's classes. In parameters of ``label_rows``, only the rows of these classes are averaged; with
            None, all rows. If the model has several heads (output layers), pass a mapping from the name of each head's
            layer or parameter to its classes: ``{"digits": [1, 2], "months.weight": [11]}``.
        weight : float
            The client's weight in the mean. HeteroFL uses 1 for every client. A reply of weight 0 is checked, but not
            averaged.
        sent : Version | None
            The version of the global model that the client trained; None for the current one.

        Raises
        ------
        ReplyError
            If the reply is invalid. Nothing of it is added.
        ShapeError
            If the plan does not fit the global state.
        ConfigError
            If the plan contains a parameter that is not floating point.
        """
        self._check_open()
        self._check_plan(plan)
        # The version's state is computed only for the check that needs it.
        start = sent.state if sent is not None and self._norm_bound else self._state
        check_reply(start, plan, sub, weight, self._largest, norm_bound=self._norm_bound)
        rows = self._label_rows.by_name(plan, labels)
        if weight:
            self._aggregator.add(CheckedReply(plan=plan, tensors=sub, rows=rows, weight=float(weight), sent=sent))
        self.replies += 1

    def result(self) -> dict[str, Tensor]:
        """Return the new global state in new tensors. Call this once."""
        self._check_open()
        self._has_result = True
        return self._aggregator.result()

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of the parameter ``name``, the total weight of the replies that count in its mean."""
        return self._aggregator.holders(name)

    def _check_plan(self, plan: Plan) -> None:
        if plan in self._plans:
            return
        plan.check_state(self._state)
        tensors = {name: self._state[name] for name in plan.axes}
        integers = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]
        if integers:
            raise ConfigError(f"only floating point can be averaged; leave {', '.join(integers[:5])} out of the plan")
        self._plans.add(plan)

    def _check_open(self) -> None:
        if self._has_result:
            raise HeteroFLError("this aggregation has given its result: make a new one from the new global state")


def check_reply(
    state: Mapping[str, Tensor],
    plan: Plan,
    sub: Mapping[str, Tensor],
    weight: float = 1.0,
    largest: float = math.inf,
    *,
    norm_bound: float = 0.0,
) -> None:
    """Raise ``ReplyError`` if a client's reply is invalid. The message names up to five faults.

    ``largest`` is the upper bound on an entry's magnitude. ``norm_bound`` is the upper bound on the L2 norm of the
    client's change; 0 means no bound.
    """
    # Sums may be in single precision, where a weight outside its range would become 0 or infinity.
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
    if not faults and norm_bound and not (distance := norm_between(sub, plan.extract(state))) <= norm_bound:
        faults = [f"its change has an L2 norm of {distance:.4g}, expected up to {norm_bound:g} (norm_bound)"]
    _raise_if_any(faults)


def check_names(plan: Plan, names: Collection[str]) -> None:
    """Raise ``ReplyError`` if ``names`` differ from the plan's parameters."""
    _raise_if_any(list(_name_faults(plan, names)))


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ReplyError(f"reply refused: {'; '.join(faults[:_SHOWN])}{rest}")


def _name_faults(plan: Plan, names: Collection[str]) -> Iterator[str]:
    unknown = [name for name in names if name not in plan.axes]
    missing = [name for name in plan.axes if name not in names]
    for wrong, fault in ((unknown, "names are not in its plan"), (missing, "parameters of its plan are missing")):
        if wrong:
            shown = ", ".join(repr(name)[:80] for name in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            yield f"{len(wrong)} {fault} ({shown})"


def _tensor_faults(name: str, new: object, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(new, Tensor) or new.layout != torch.strided:
        yield f"{name} is {type(new).__name__}, expected a dense tensor"
    elif new.dtype != dtype:
        yield f"{name} is {new.dtype}, expected {dtype}"
    elif new.shape != shape:
        yield f"{name} has shape {tuple(new.shape)}, expected {shape}"


def value_faults(sub: Mapping[str, Tensor], largest: float = math.inf) -> Iterator[str]:
    """Yield an error message for each floating-point tensor with NaN, infinity or a magnitude above ``largest``."""
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # The norm bounds every entry, is not finite if any entry is not, and is much cheaper than comparing each entry.
        # It can be too large, or overflow, for valid entries, which are then compared. Integers are not averaged.
        square = torch.dot(flat, flat).item() if flat.is_floating_point() else 0.0
        if math.isfinite(square) and square <= largest**2:
            continue
        if not flat.isfinite().all():
            yield f"{name} contains NaN or infinity"
        elif (magnitude := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {magnitude:.4g}, expected up to {largest:g}"
