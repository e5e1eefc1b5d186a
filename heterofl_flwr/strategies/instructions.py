"""The messages that the server sends: a slice of the model, and what to do with it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.federation.round import Federation
from heterofl_flwr.nn.moments import Moments


def slices_of(
    federation: Federation, arrays: ArrayRecord, state: Mapping[str, Tensor], plans: Iterable[Plan]
) -> dict[Plan, ArrayRecord]:
    """Return one record a plan, to be shared by its messages; the whole model's is ``arrays`` themselves.

    Flower keeps, and in a deployment uploads, equal objects once.
    """
    top = federation.plan(federation.mix.global_rate)
    whole = top if list(arrays) == list(top.axes) else None  # users' may hold running statistics too
    return {plan: arrays if plan == whole else ArrayRecord(plan.extract(state)) for plan in dict.fromkeys(plans)}


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message with a config of its own."""
    return Message(RecordDict({wire.ARRAYS: arrays, wire.CONFIG: wire.new_config(config)}), node_id, kind)


class EvaluationRound:
    """Which client evaluates which rates, and the messages that ask it to.

    A client gets the largest model that it is asked about, once, and cuts the smaller ones out of it. ``rates_of`` has
    each client's rates from the largest on; ``told`` is what else goes with its messages.
    """

    def __init__(
        self,
        federation: Federation,
        arrays: ArrayRecord,
        rates_of: Mapping[int, tuple[float, ...]],
        told: Mapping[int, Mapping[str, object]],
    ) -> None:
        self._rates_of = dict(rates_of)
        self._federation = federation
        self._told = told
        state = federation.check_state(wire.tensors_of(arrays, "the server"))
        plans = {rates[0]: federation.plan(rates[0]) for rates in rates_of.values()}
        slices = slices_of(federation, arrays, state, plans.values())
        self._slices = {rate: slices[plan] for rate, plan in plans.items()}

    def queries(self) -> list[Message]:
        """Return the messages that ask for static batch norm moments."""
        kind = {wire.MOMENTS_KIND: self._federation.fidelity.moments}
        return [self._message(wire.QUERY_MOMENTS, node_id, kind) for node_id in self._rates_of]

    def evaluations(self, moments: Mapping[float, Moments]) -> list[Message]:
        """Return the messages that ask for an evaluation, with these moments if there are any."""
        sent = [self._message(MessageType.EVALUATE, node_id, {}) for node_id in self._rates_of]
        if moments:
            records = {
                rates: wire.pack_moments({rate: moments[rate] for rate in rates})
                for rates in set(self._rates_of.values())
            }
            for message in sent:
                message.content[wire.MOMENTS] = records[self._rates_of[message.metadata.dst_node_id]]
        return sent

    def _message(self, kind: str, node_id: int, extra: Mapping[str, object]) -> Message:
        rates = self._rates_of[node_id]
        config = {**self._told[node_id], **extra, wire.RATE: rates[0], wire.RATES: list(rates)}
        return instruction(kind, node_id, self._slices[rates[0]], config)


POLL_SECONDS = 1.0
"""Between two looks for replies on a grid that cannot wait for them."""


def first_replies(grid: Grid, messages: Sequence[Message], enough: int, timeout: float) -> list[Message]:
    """Send messages and return the replies that are there as soon as ``enough`` of them are no errors.

    At the latest, those that are there after ``timeout`` seconds. The others are ignored, whenever they come.
    """
    deadline = time.monotonic() + timeout
    waiting = [id_ for id_ in grid.push_messages(messages) if id_]
    replies: list[Message] = []
    while True:
        new = list(grid.pull_messages(waiting)) if waiting else []
        answered = {reply.metadata.reply_to_message_id for reply in new}
        waiting = [id_ for id_ in waiting if id_ not in answered]
        replies += new
        good = sum(not reply.has_error() for reply in replies)
        left = deadline - time.monotonic()
        if good >= enough or not waiting or left <= 0:
            break
        time.sleep(min(POLL_SECONDS, left))
    cancel: Callable[[list[str]], None] | None = getattr(grid, "cancel", None)  # a LocalGrid has it
    if cancel:
        cancel(waiting)
    return replies
