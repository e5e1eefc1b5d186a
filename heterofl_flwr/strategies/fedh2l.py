"""Rounds of two exchanges: clients train and publish posteriors on a seed batch, then learn from those of others.

The server relays posteriors; it has neither the seed set nor what clients compute on it.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from reprlib import repr as shown
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn, stack, zeros

from heterofl_flwr import messages as wire
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.federation.round import State, TrainReply
from heterofl_flwr.messages import size_of
from heterofl_flwr.strategies.heterofl import HeteroFL
from heterofl_flwr.strategies.instructions import instruction
from heterofl_flwr.strategies.replies import read_each, read_metrics
from heterofl_flwr.training.distill import check_posteriors


class Exchange(HeteroFL):
    """What strategies share whose clients answer ``train.publish`` and ``train.learn``.

    Parameters
    ----------
    build, mix, **options
        Those of ``HeteroFLBase``.
    classes : int
        Number of classes, of which a posterior has an entry each.
    seed_size : int
        Examples of the seed set, which every client has.
    seed_batch : int
        How many of them a round uses, drawn anew.
    temperature : float
        By what clients divide logits before they become posteriors.
    """

    def __init__(
        self,
        build: Callable[[float], nn.Module],
        mix: str | Mix,
        *,
        classes: int,
        seed_size: int = 1000,
        seed_batch: int = 100,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        if classes < 2 or not 1 <= seed_batch <= seed_size or not temperature > 0:
            raise ConfigError(
                f"{type(self).__name__} with {classes} classes, {seed_batch} of {seed_size} seed examples and "
                f"temperature {temperature}: expected 2 classes or more, a batch of 1 up to the seed set, a "
                f"temperature over 0"
            )
        super().__init__(build, mix, **options)
        if self.federation.privacy.clip:
            raise ConfigError(
                f"privacy: {type(self).__name__} exchanges posteriors, which are not noised; leave it off"
            )
        if self.spare:
            raise ConfigError(f"spare: in {type(self).__name__} clients learn from all others; leave it at 0")
        self._shape = (seed_batch, classes)
        self._seed_size = seed_size
        self._temperature = temperature
        self._first: dict[int, Mapping[str, float]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Let the round's clients train and publish; return for each the message with what the others published."""
        state = self.federation.check_state(wire.tensors_of(arrays, "the server"))
        rates = self._begin(server_round, self._available(grid), state)
        seeds = {wire.SEED_ROWS: list(self.seed_rows(server_round)), wire.TEMPERATURE: self._temperature}
        told: dict[int, Mapping[str, object]] = {
            node_id: {**config, **self._form, **self._told(server_round, node_id, rate), **seeds}
            for node_id, rate in rates.items()
        }
        slices = self._slices(arrays, state)
        for node_id, record in slices.items():
            self.log.send(rates[node_id], size_of(record))
        published = self._collect(server_round, told, slices, grid)
        self._sent = []
        for node_id, record in self._heard(published).items():
            self.log.send(rates[node_id], size_of(record))
            message = instruction(wire.TRAIN_LEARN, node_id, ArrayRecord(), told[node_id])
            message.content[wire.POSTERIORS] = record
            self._sent.append(message)
        self.keys.put_on(self._sent)
        return list(self._sent)

    def _largest_reply(self, message: Message) -> int:
        """Return how many bytes the reply to a message may have, posteriors among them."""
        return super()._largest_reply(message) + 8 * math.prod(self._shape)

    def seed_rows(self, server_round: int) -> Sequence[int]:
        """Return which examples of the seed set a round uses, ascending."""
        draw = generator(self.federation.seed, "seed-batch", server_round)
        return sorted(draw.sample(range(self._seed_size), self._shape[0]))

    @abstractmethod
    def _slices(self, arrays: ArrayRecord, state: State) -> Mapping[int, ArrayRecord]:
        """Return what each client of the round begins with."""

    @abstractmethod
    def _heard(self, published: Mapping[int, Tensor]) -> Mapping[int, ArrayRecord]:
        """Return what each client that published gets to learn from."""

    def _take(self, node_id: int, answer: TrainReply) -> None:
        """Add a client's reply; its metrics are those of both exchanges."""
        super()._take(node_id, replace(answer, metrics={**self._first[node_id], **answer.metrics}))

    def _collect(
        self,
        server_round: int,
        told: Mapping[int, Mapping[str, object]],
        slices: Mapping[int, ArrayRecord],
        grid: Grid,
    ) -> dict[int, Tensor]:
        """Return what clients publish; one whose posteriors are none is refused by name and left out of the round."""
        sent = [instruction(wire.TRAIN_PUBLISH, node_id, slices[node_id], own) for node_id, own in told.items()]
        self.keys.put_on(sent)
        published: dict[int, Tensor] = {}
        self._first = {}

        def read(node_id: int, reply: Message) -> None:
            sender = f"node {node_id}"
            found, size = _posteriors_in(reply, self._shape, sender)
            _, self._first[node_id] = read_metrics(reply, self.limits, sender, self.keys.weighted_by_key)
            published[node_id] = found
            self.log.bytes_up += size

        refuse = partial(self._refuse, server_round)
        read_each(sent, grid.send_and_receive(sent, timeout=self._timeout), read, refuse)
        return published


def _posteriors_in(reply: Message, shape: tuple[int, int], sender: str) -> tuple[Tensor, int]:
    """Return the posteriors of a reply, and their bytes."""
    wire.config_of(reply, sender)
    records = wire.arrays_in(reply.content)
    if list(records) != [wire.POSTERIORS] or list(records[wire.POSTERIORS]) != [wire.POSTERIORS]:
        raise ReplyError(f"{sender} sent records {shown(list(records))}, expected {wire.POSTERIORS} alone")
    record = records[wire.POSTERIORS]
    wire.check_sizes(record, {wire.POSTERIORS: math.prod(shape)}, sender)
    found = wire.tensors_of(record, sender)[wire.POSTERIORS]
    return check_posteriors(found, shape, sender), size_of(record)


class FedH2L(Exchange):
    """Train a model on each client, of whatever architecture, with the help of its peers.

    Clients answer ``train.publish`` and ``train.learn``; see ``heterofl_flwr.training.distill`` for what they do.

    Parameters
    ----------
    classes : int
        Number of classes, of which a posterior has an entry each.
    mix : str | Mix
        The rates at which clients build their models, and their shares; a client keeps its rate.
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
        self,
        classes: int,
        mix: str | Mix = "a1",
        *,
        seed_size: int = 1000,
        seed_batch: int = 100,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            _nothing,
            mix,
            classes=classes,
            seed_size=seed_size,
            seed_batch=seed_batch,
            temperature=temperature,
            shared=(),
            label_rows=(),
            **options,
        )

    def _slices(self, arrays: ArrayRecord, state: State) -> Mapping[int, ArrayRecord]:
        del arrays, state
        return {node_id: ArrayRecord() for node_id in self._rates}

    def _heard(self, published: Mapping[int, Tensor]) -> Mapping[int, ArrayRecord]:
        """Return for each client what all others published."""
        peers = {node_id: [said for other, said in published.items() if other != node_id] for node_id in published}
        return {
            node_id: ArrayRecord({wire.POSTERIORS: stack(own) if own else zeros(0, *self._shape)})
            for node_id, own in peers.items()
        }


def _nothing(rate: float) -> nn.Module:
    """Return what the server holds: a model without parameters."""
    del rate
    return nn.Identity()
