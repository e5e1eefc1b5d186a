"""Aggregation of one round's replies, with checks."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, listed
from heterofl_flwr.core.aggregator import CheckedReply, OpenAggregator, Version
from heterofl_flwr.core.check_reply import check_model, check_reply
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.label_rows import LabelRows, Labels
from heterofl_flwr.core.slice_plan import Plan


class Aggregation:
    """Aggregation of one round: checks each reply and adds it to an aggregator.

    Parameters
    ----------
    global_state : Mapping[str, Tensor]
        The global state before the round; not changed. Entries that no client holds keep their values.
    label_rows : Sequence[str]
        Names of parameters with one row for each class, such as ``["linear.weight", "linear.bias"]``. If ``add`` gets
        a client's ``labels``, only the rows of these labels are averaged.
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
            None, all rows. If the model has several heads (output layers), pass a mapping from the name of a head's
            layer or parameter to the classes in this head: ``{"digits": [1, 2], "months.weight": [11]}``.
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
        new = self._aggregator.result()
        if type(self._aggregator) is not CountingMean:  # its mean of checked replies is valid
            check_model(new, self._state, f"{type(self._aggregator).__name__}.result")
        return new

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of the parameter ``name``, the total weight of the replies in the entry's mean."""
        return self._aggregator.holders(name)

    def _check_plan(self, plan: Plan) -> None:
        if plan in self._plans:
            return
        plan.check_state(self._state)
        tensors = {name: self._state[name] for name in plan.axes}
        integers = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]
        if integers:
            raise ConfigError(f"only floating point can be averaged; leave {listed(integers)} out of the plan")
        self._plans.add(plan)

    def _check_open(self) -> None:
        if self._has_result:
            raise HeteroFLError("this aggregation has given its result: make a new one from the new global state")
