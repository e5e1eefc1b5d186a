"""FedH2L: clients of different architectures learn from one another's posteriors on a shared seed set.

A round has two exchanges. Clients train on their own data and publish what they say of a batch of seed examples; each
then gets what its peers published, and learns from it. The server relays, and never sees a parameter: this all-to-all
exchange stands for the decentralised form.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn, stack, zeros

from heterofl_flwr import messages as wire
from heterofl_flwr.core.seeds import generator
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.learn.distill import check_posteriors
from heterofl_flwr.methods.heterofl import HeteroFL
from heterofl_flwr.methods.instructions import instruction, size_of
from heterofl_flwr.methods.replies import read_each

logger = logging.getLogger(__name__)


class FedH2L(HeteroFL):
    """Train a model on each client, of whatever architecture, with the help of its peers.

    Clients answer ``train.publish`` and ``train.learn``; see ``heterofl_flwr.learn.distill`` for what they do.

    Parameters
    ----------
    classes : int
        Number of classes, of which a posterior has an entry each.
    seed_size : int
        Examples of the seed set, which every client has.
    seed_batch : int
        How many of them a round uses, drawn anew.
    temperature : float
        By what clients divide logits before they become posteriors.
    **options
        Those of ``HeteroFLBase`` that do not tell what is sent: ``seed``, ``fraction_train``, ``evaluation`` and so on.
    """

    def __init__(
        self, classes: int, *, seed_size: int = 1000, seed_batch: int = 100, temperature: float = 1.0, **options: Any
    ) -> None:
        if classes < 2 or not 1 <= seed_batch <= seed_size or not temperature > 0:
            raise ConfigError(
                f"FedH2L with {classes} classes, {seed_batch} of {seed_size} seed examples and temperature "
                f"{temperature}: expected 2 classes or more, a batch of 1 up to the seed set, a temperature over 0"
            )
        super().__init__(_nothing, "a1", shared=(), label_rows=(), **options)
        self._shape = (seed_batch, classes)
        self._seed_size = seed_size
        self._temperature = temperature

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Let the round's clients train and publish; return for each the message with what its peers published."""
        del arrays
        rates = self._begin(server_round, self._available(grid), {})
        rows = self.seed_rows(server_round)
        told: dict[int, Mapping[str, object]] = {
            node_id: {
                **config,
                **self._told(server_round, node_id, rate),
                wire.SEED_ROWS: list(rows),
                wire.TEMPERATURE: self._temperature,
            }
            for node_id, rate in rates.items()
        }
        published = self._collect(server_round, told, grid)
        self._sent = []
        for node_id in published:
            peers = [said for other, said in published.items() if other != node_id]
            record = ArrayRecord({wire.POSTERIORS: stack(peers) if peers else zeros(0, *self._shape)})
            self.log.bytes_down += size_of(record)
            message = instruction(wire.TRAIN_LEARN, node_id, ArrayRecord(), told[node_id])
            message.content[wire.POSTERIORS] = record
            self._sent.append(message)
        return list(self._sent)

    def seed_rows(self, server_round: int) -> Sequence[int]:
        """Return which examples of the seed set a round uses, ascending."""
        draw = generator(self.federation.seed, "seed-batch", server_round)
        return sorted(draw.sample(range(self._seed_size), self._shape[0]))

    def _collect(self, server_round: int, told: Mapping[int, Mapping[str, object]], grid: Grid) -> dict[int, Tensor]:
        """Return what clients publish; one whose posteriors are none is refused by name and left out of the round."""
        sent = [instruction(wire.TRAIN_PUBLISH, node_id, ArrayRecord(), own) for node_id, own in told.items()]
        published: dict[int, Tensor] = {}

        def read(node_id: int, reply: Message) -> None:
            published[node_id], size = _posteriors_in(reply, self._shape, f"node {node_id}")
            self.log.bytes_up += size

        def refuse(node_id: int, fault: str) -> None:
            self._refuse(server_round, node_id, fault)

        read_each(sent, grid.send_and_receive(sent, timeout=self._timeout), read, refuse)
        return published


def _posteriors_in(reply: Message, shape: tuple[int, int], sender: str) -> tuple[Tensor, int]:
    """Return the posteriors of a reply, and their bytes."""
    wire.config_of(reply, sender)
    records = wire.arrays_in(reply.content)
    if list(records) != [wire.POSTERIORS] or list(records[wire.POSTERIORS]) != [wire.POSTERIORS]:
        raise ReplyError(f"{sender} sent records {list(records)}, expected {wire.POSTERIORS} alone")
    record = records[wire.POSTERIORS]
    found = wire.tensors_of(record, sender)[wire.POSTERIORS]
    return check_posteriors(found, shape, sender), size_of(record)


def _nothing(rate: float) -> nn.Module:
    """Return what the server holds: a model without parameters."""
    del rate
    return nn.Identity()
