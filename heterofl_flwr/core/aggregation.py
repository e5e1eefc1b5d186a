"""Aggregation of one round: the checks of each reply before an aggregator gets it."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.core.aggregator import CheckedReply, OpenAggregator, Version
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.label_rows import LabelRows, Labels
from heterofl_flwr.core.reply_checks import check_reply
from heterofl_flwr.core.slice_plan import Plan


class Aggregation:
    """The aggregation of one round: checks each reply, adds it to an aggregator, and gives the result once.

    Parameters
    ----------
    global_state : Mapping[str, Tensor]
        The state that the replies started from. It is read, never changed; entries that no client held are unchanged
        in the result.
    label_rows : Sequence[str]
        Parameters whose rows belong to classes, such as ``["linear.weight", "linear.bias"]``. A client's rows count
        for the classes in its ``labels``.
    aggregator : Callable[[Mapping[str, Tensor]], Aggregator]
        Makes the aggregator from the global state: ``CountingMean``, or ``partial(RobustMean, robust=Robust())``.
    extra_rows : bool
        Whether rows beyond the classes, such as the embedding of [MASK], count for every holder; otherwise they count
        for no client that sends labels (``Fidelity.extra_rows``).
    largest : float
        Upper bound on the magnitude of a reply's entries; by default they have to be finite. Beyond it, the sum of
        several replies could overflow.
    norm_bound : float
        Upper bound on the L2 norm of a reply's change; 0 for no bound.

    Attributes
    ----------
    replies : int
        Number of replies added.

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
        """Check a client's reply and add it.

        Parameters
        ----------
        plan : Plan
            The slice that the client holds.
        sub : Mapping[str, Tensor]
            Its parameters, in the plan's shapes and the global model's dtypes.
        labels : Sequence[int] | Mapping[str, Sequence[int]] | None
            The classes whose rows count; None means all rows. With several heads, the classes of each by the name of
            its layer or parameter: ``{"digits": [1, 2], "months.weight": [11]}``.
        weight : float
            The client's weight in the mean; HeteroFL counts every client once. 0: the reply is checked and not used.
        sent : Version | None
            The version that the client trained; None for the current one.

        Raises
        ------
        ReplyError
            If anything about the reply is wrong. It is rejected as a whole, and the aggregation is unchanged.
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
        """Return the new global state, in new tensors of the old dtypes, and end the aggregation."""
        self._check_open()
        self._has_result = True
        return self._aggregator.result()

    def holders(self, name: str) -> Tensor:
        """Return the total weight of the clients that held each entry of a parameter."""
        return self._aggregator.holders(name)

    def _check_plan(self, plan: Plan) -> None:
        """Raise unless a plan fits the global state and holds floating point alone."""
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
