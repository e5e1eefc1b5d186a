"""The messages that the server sends: a slice of the model, and what to do with it."""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.methods.federation import Federation
from heterofl_flwr.nn.moments import Moments


def slices_of(federation: Federation, state: Mapping[str, Tensor], rates: Iterable[float]) -> dict[float, ArrayRecord]:
    """Return one record a rate, to be shared by its messages.

    Flower keeps, and in a deployment uploads, equal objects once.
    """
    return {rate: ArrayRecord(federation.plan(rate).extract(state)) for rate in set(rates)}


def instruction(
    federation: Federation,
    kind: str,
    node_id: int,
    server_round: int,
    arrays: ArrayRecord,
    config: Mapping[str, object],
) -> Message:
    """Return a message with a config of its own: the caller's keys, and those that every client needs."""
    told = wire.new_config(
        {
            **config,
            wire.GLOBAL_RATE: federation.mix.global_rate,
            wire.SERVER_ROUND: server_round,
            wire.SEED: federation.seed,
            wire.PARTITION: federation.nodes.partition(node_id),
        }
    )
    return Message(RecordDict({wire.ARRAYS: arrays, wire.CONFIG: told}), node_id, kind)


class EvaluationRound:
    """Which client evaluates which rates, and the messages that ask it to.

    A client gets the largest model that it is asked about, once, and cuts the smaller ones out of it.
    """

    def __init__(
        self,
        federation: Federation,
        server_round: int,
        state: Mapping[str, Tensor],
        rates_of: Mapping[int, tuple[float, ...]],
        config: Mapping[str, object],
    ) -> None:
        self.rates_of = rates_of
        self._federation = federation
        self._server_round = server_round
        self._config = config
        self._slices = slices_of(federation, state, {rates[0] for rates in rates_of.values()})

    def queries(self) -> list[Message]:
        """Return the messages that ask for static batch norm moments."""
        return [
            self._message(wire.QUERY_MOMENTS, node_id, {wire.MOMENTS_KIND: self._federation.fidelity.moments})
            for node_id in self.rates_of
        ]

    def evaluations(self, moments: Mapping[float, Moments]) -> list[Message]:
        """Return the messages that ask for an evaluation with these moments, if there are any."""
        sent = [self._message(MessageType.EVALUATE, node_id, self._config) for node_id in self.rates_of]
        records = {
            rates: wire.pack_moments({rate: moments[rate] for rate in rates})
            for rates in set(self.rates_of.values())
            if moments
        }
        for message in sent if records else ():
            message.content[wire.MOMENTS] = records[self.rates_of[message.metadata.dst_node_id]]
        return sent

    def _message(self, kind: str, node_id: int, config: Mapping[str, object]) -> Message:
        rates = self.rates_of[node_id]
        told = {**config, wire.RATE: rates[0], wire.RATES: list(rates)}
        return instruction(self._federation, kind, node_id, self._server_round, self._slices[rates[0]], told)


def size_of(arrays: ArrayRecord) -> int:
    """Return the bytes of a record's arrays, as they travel."""
    return sum(len(array.data) for array in arrays.values())
