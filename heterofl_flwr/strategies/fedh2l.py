"""``FedH2L``: a strategy whose rounds have two exchanges of messages.

All clients hold the same seed set; each round draws a batch of it. First, each client trains, and publishes its
posteriors (class probabilities) for this batch. Then each client learns from the posteriors of the other clients.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from reprlib import repr as shown

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, stack, zeros

from heterofl_flwr.common.errors import ConfigError, ReplyError, check_count
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.federation.architecture import Architecture
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.options import Evaluation, Options, Training
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.sampling import Participation, Sampling
from heterofl_flwr.stages.client_stage import FULL_PRECISION, TrainReply
from heterofl_flwr.strategies.arguments import FEDAVG
from heterofl_flwr.strategies.metrics_function import MetricsFn
from heterofl_flwr.strategies.round_messages import read_each
from heterofl_flwr.strategies.start import FederationStrategy
from heterofl_flwr.strategies.time_budget import PUBLISH_SHARE, Budget
from heterofl_flwr.training.fedh2l import DistillOptions, check_posteriors
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import check_sizes, count_bytes, read_tensors
from heterofl_flwr.transport.messages import instruction


class FedH2L(FederationStrategy):
    """Train a model of any architecture on each client, by distillation among the clients (FedH2L).

    Clients answer messages of the types ``train.publish`` and ``train.learn``. Functions for this are in
    ``heterofl_flwr.training.fedh2l``.

    Parameters
    ----------
    classes : int
        Number of classes.
    mix : str | Mix
        The rates of the clients' models, and the share of clients at each rate. A client keeps its rate.
    distill : DistillOptions
        The seed set, and the temperature of the posteriors.
    sampling : Sampling
        As in ``HeteroFL``, without spare clients.
    training : Training
        The learning rate. Clients send no parameters, so ``upload`` and ``proximal_mu`` must keep their defaults.
    limits : Limits
        As in ``HeteroFL``, but ``norm_bound`` must keep its default.

    All other arguments are as in ``HeteroFL``.
    """

    train_kind = messages.TRAIN_PUBLISH

    def __init__(
        self,
        classes: int,
        mix: str | Mix = "a1",
        *,
        distill: DistillOptions = DistillOptions(),
        fraction_train: float = FEDAVG.fraction_train,
        fraction_evaluate: float = FEDAVG.fraction_evaluate,
        min_train_nodes: int | None = FEDAVG.min_train_nodes,
        min_evaluate_nodes: int | None = FEDAVG.min_evaluate_nodes,
        min_available_nodes: int = FEDAVG.min_available_nodes,
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        training: Training = Training(),
        limits: Limits = Limits(),
        evaluation: Evaluation = Evaluation(),
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        check_count("classes", classes, 2)
        options = Options(
            sampling=Participation.of(
                sampling,
                fraction_train=fraction_train,
                fraction_evaluate=fraction_evaluate,
                min_train_nodes=min_train_nodes,
                min_evaluate_nodes=min_evaluate_nodes,
                min_available_nodes=min_available_nodes,
            ),
            training=training,
            limits=limits,
            evaluation=evaluation,
        )
        faults = {
            "sampling.spare": sampling.spare,
            "training.upload": training.upload != FULL_PRECISION,
            "training.proximal_mu": training.proximal_mu,
            "limits.norm_bound": limits.norm_bound,
        }
        if wrong := [name for name, is_set in faults.items() if is_set]:
            raise ConfigError(
                f"FedH2L: found {', '.join(wrong)}; expected the default values, because clients learn from all others "
                f"and exchange posteriors alone"
            )
        self._seeds = distill
        federation = Federation(Architecture(Mix.parse(mix), options, seed))
        super().__init__(federation, train_metrics_aggr_fn, evaluate_metrics_aggr_fn, callbacks)
        self._shape = (self._seeds.seed_batch, classes)
        self._publish_metrics: dict[int, Mapping[str, float]] = {}  # metrics of the first exchange, by client

    def largest_reply(self, message: Message) -> int:
        """Return an upper bound on the bytes of a reply, which may hold posteriors."""
        return super().largest_reply(message) + 8 * math.prod(self._shape)

    def seed_rows(self, server_round: int) -> list[int]:
        """Return the sorted indices of a round's seed batch in the seed set."""
        draw = generator(self.federation.seed, "seed-batch", server_round)
        return sorted(draw.sample(range(self._seeds.seed_size), self._seeds.seed_batch))

    def check_train_config(self, config: ConfigRecord) -> None:
        """Raise ``ConfigError`` if a user's config for training contains keys that the server sends."""
        super().check_train_config(config)
        messages.check_own_keys(config, frozenset({messages.SEED_ROWS, messages.TEMPERATURE}))

    def _train_config(self, current: Round, node_id: int, rate: float) -> dict[str, object]:
        rows = self.seed_rows(current.server_round)
        seeds = {messages.SEED_ROWS: rows, messages.TEMPERATURE: self._seeds.temperature}
        return {**super()._train_config(current, node_id, rate), **seeds}

    def exchange(self, grid: Grid, sent: list[Message], timeout: float) -> Iterable[Message]:
        """Run both exchanges of a round; return the replies of the second.

        ``sent`` are the messages of the first exchange.
        """
        budget = Budget(timeout)
        learners = self.relay(grid, sent, PUBLISH_SHARE * timeout)
        return grid.send_and_receive(learners, timeout=budget.remaining())

    def relay(self, grid: Grid, sent: list[Message], timeout: float) -> list[Message]:
        """Run the first exchange; return, for each client, a message with the posteriors of the other clients.

        A client without valid posteriors is refused, and gets no message.
        """
        current = self.open_round()
        opened = self.messages_of(current.server_round)
        posteriors: dict[int, Tensor] = {}
        self._publish_metrics = {}

        def read(node_id: int, reply: Message) -> None:
            sender = self.federation.nodes.name(node_id)
            tensor, size = _read_posteriors(reply, self._shape, sender)
            _, self._publish_metrics[node_id] = reading.read_metrics(reply, self.options.limits.examples, sender)
            posteriors[node_id] = tensor
            self.log.bytes_up += size

        replies = opened.watch(grid.send_and_receive(sent, timeout=timeout), "published", len(sent), self.callbacks)
        for node_id, fault in read_each(sent, replies, read):
            if fault is not None:
                current.refuse(node_id, fault)
        configs = {message.metadata.dst_node_id: reading.read_config(message) for message in sent}
        opened.sent = []
        for node_id in posteriors:
            peers = [tensor for peer, tensor in posteriors.items() if peer != node_id]
            record = ArrayRecord({messages.POSTERIORS: stack(peers) if peers else zeros(0, *self._shape)})
            current.note_sent(node_id, count_bytes(record))
            message = instruction(messages.TRAIN_LEARN, node_id, ArrayRecord(), configs[node_id])
            message.content[messages.POSTERIORS] = record
            opened.sent.append(message)
        return list(opened.sent)

    def add_reply(self, node_id: int, reply: Message) -> None:
        """Read a client's reply of the second exchange, and add it to the open round."""
        super().add_reply(node_id, reply)
        self._train_metrics.add_earlier(node_id, self._publish_metrics[node_id])

    def _read_train_reply(self, node_id: int, reply: Message, current: Round) -> TrainReply:
        """Return a reply of the second exchange, with the client's metrics from both exchanges."""
        content = super()._read_train_reply(node_id, reply, current)
        return replace(content, metrics={**self._publish_metrics[node_id], **content.metrics})


def _read_posteriors(reply: Message, shape: tuple[int, int], sender: str) -> tuple[Tensor, int]:
    """Return the posteriors in a reply, and their size in bytes."""
    reading.read_config(reply, sender)
    records = reading.array_records(reply.content)
    if list(records) != [messages.POSTERIORS] or list(records[messages.POSTERIORS]) != [messages.POSTERIORS]:
        raise ReplyError(f"{sender} sent records {shown(list(records))}, expected {messages.POSTERIORS} alone")
    record = records[messages.POSTERIORS]
    check_sizes(record, {messages.POSTERIORS: math.prod(shape)}, sender)
    posteriors = read_tensors(record, sender)[messages.POSTERIORS]
    return check_posteriors(posteriors, shape, sender), count_bytes(record)
