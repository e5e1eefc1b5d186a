"""A small model, clients whose training is an addition, and grids that watch or disturb what passes."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType, SimpleNamespace

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, RoundCallback
from heterofl_flwr.client import Task
from heterofl_flwr.client.queries import answer_capability, answer_moments
from heterofl_flwr.core import width
from heterofl_flwr.transport import messages
from tests.core.twin import counting_mean, trained_reply
from tests.federation.grouped import grouped

NEVER = Evaluation(every=0)
Handler = Callable[[Message, Context], Message | None]


class Tiny(nn.Module):
    """Three inputs, eight hidden units at rate 1, four classes; its batch norm keeps running statistics."""

    def __init__(self, rate: float, norm: bool = False) -> None:
        super().__init__()
        hidden = width(8, rate)
        self.hidden = nn.Linear(3, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.classifier = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.norm(self.hidden(x))))


build = Tiny
build_normed = partial(Tiny, norm=True)


def inputs(partition: int) -> Tensor:
    """Return a node's own data, which no other node shares."""
    return torch.randn(6 + partition, 3, generator=torch.Generator().manual_seed(partition)) + partition


def add_one(message: Message, context: Context, build=build, **said) -> Message:
    """Train: add one more than the partition to what is trained, and run a forward pass in training mode."""
    partition = context.node_config["partition-id"]
    task = Task(message, context, build)
    model = task.model()
    with torch.no_grad():
        if isinstance(model, Tiny):
            model(inputs(partition))
        for parameter in model.parameters():
            parameter += (1 + partition) * parameter.requires_grad
    return task.reply(model, num_examples=1 + partition, metrics={"loss": partition}, **said)


def adding(amount=lambda partition: 1 + partition, labels=lambda partition: None, build=build) -> Handler:
    """Return a client that adds an amount to all parameters, and names classes."""

    def train(message: Message, context: Context) -> Message:
        partition, task = context.node_config["partition-id"], Task(message, context, build)
        model = task.model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += amount(partition)
        return task.reply(model, num_examples=1, labels=labels(partition))

    return train


def judge(message: Message, context: Context, build=build) -> Message:
    """Evaluate: report each model's mean output on the node's own data."""
    partition = context.node_config["partition-id"]
    metrics = {}
    task = Task(message, context, build)
    for rate, model in task.models():
        with torch.inference_mode():
            metrics[f"output/{rate}"] = model(inputs(partition)).mean().item()
    metrics["local-accuracy"] = 1 / (1 + partition)
    return task.reply(num_examples=1 + partition, metrics=metrics)


def make_app(
    train: Handler = add_one,
    evaluate: Handler = judge,
    *,
    odd: Mapping[int, Handler] | None = None,
    build=build,
    capability: Handler | None = answer_capability,
    moments: Handler | None = None,
) -> ClientApp:
    """Return a ClientApp; ``odd`` has the handlers of partitions that train in a way of their own."""
    app = ClientApp()
    handlers = dict(odd or {})

    @app.train()
    def _(message: Message, context: Context) -> Message | None:
        own = handlers.get(context.node_config["partition-id"], train)
        return own(message, context, build=build) if own is add_one else own(message, context)

    @app.evaluate()
    def _(message: Message, context: Context) -> Message | None:
        return evaluate(message, context, build=build) if evaluate is judge else evaluate(message, context)

    if capability is not None:
        app.query("capability")(capability)

    @app.query("moments")
    def _(message: Message, context: Context) -> Message | None:
        if moments is not None:
            return moments(message, context)
        return answer_moments(Task(message, context, build), lambda: [inputs(context.node_config["partition-id"])])

    return app


def crash(message: Message, context: Context) -> Message:
    """Fail, whatever is asked."""
    raise RuntimeError("the disk is full")


def bare_reply(message: Message, **records) -> Message:
    """Return a reply with these records alone."""
    return Message(RecordDict(records), reply_to=message)


def config(**values) -> ConfigRecord:
    """Return a config of the present schema; underscores in keys become hyphens."""
    return messages.new_config({key.replace("_", "-"): value for key, value in values.items()})


def node_context(run_config: Mapping = MappingProxyType({}), **node) -> Context:
    """Return the context of a node; underscores in the keys of its config become hyphens."""
    return Context(1, 7, {key.replace("_", "-"): value for key, value in node.items()}, RecordDict(), dict(run_config))


class Watched(LocalGrid):
    """A grid that keeps what was sent, and what came back by ``send_and_receive``; its nodes may have ``names``.

    Functions of the grid change it: ``present`` says which nodes are there, ``lost`` which messages reach no client,
    and ``change`` changes replies.
    """

    def __init__(self, *args, names="", present=None, lost=None, change=None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Message] = []
        self.heard: list[Message] = []
        self._names, self._present, self._lost, self._change = names, present, lost, change

    def get_node_ids(self) -> Iterable[int]:
        ids = super().get_node_ids()
        return self._present(self, ids) if self._present else ids

    def get_nodes(self) -> Iterable[SimpleNamespace]:
        names = dict(zip(super().get_node_ids(), self._names, strict=False))
        return [SimpleNamespace(node_id=node_id, name=names.get(node_id, "")) for node_id in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        lost = {sent.metadata.message_id for sent in self.sent if self._lost(self, sent)} if self._lost else ()
        return super().pull_messages([id_ for id_ in message_ids if id_ not in lost])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = [message for message in messages if not (self._lost and self._lost(self, message))]
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies if self._change else ():
            self._change(self, reply)
        self.heard += replies
        return replies

    def of(self, kind: str) -> list[Message]:
        """Return the messages of a type."""
        return [message for message in self.sent if message.metadata.message_type == kind]

    def partition_of(self, message: Message) -> int:
        """Return the partition of the node that a message went to or came from; the node may be away."""
        nodes = list(LocalGrid.get_node_ids(self))
        return nodes.index({message.metadata.dst_node_id, message.metadata.src_node_id}.intersection(nodes).pop())


class Shuffled(LocalGrid):
    """A grid whose replies come in another order each time, and some twice."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        replies += replies[:1]
        random.Random(len(replies)).shuffle(replies)
        return replies


class Keep(RoundCallback):
    """A callback that keeps what it is handed."""

    def __init__(self) -> None:
        self.progress, self.replies = [], []

    def on_reply(self, what, done, total, failed):
        self.replies.append((what, done, total, failed))

    def on_round_end(self, progress):
        self.progress.append(progress)
        return False

    @property
    def records(self):
        return [progress.record for progress in self.progress]


class Played(SimpleNamespace):
    """A run: its strategy, log, state, result, progress, records, replies and grid."""

    @property
    def federation(self):
        return self.strategy.federation

    @property
    def architecture(self):
        return self.federation.architecture

    @property
    def before(self) -> dict[str, Tensor]:
        """The global model before the first round."""
        return self.architecture.initial_state()


def play(
    app=None,
    mix="a1",
    nodes=3,
    num_rounds=1,
    *,
    build=build,
    grid=Watched,
    kind=HeteroFL,
    wrap=None,
    start=None,
    **options,
):
    """Play a run of a strategy of a ``kind``; without evaluation, if none is asked for."""
    keep = Keep()
    node_config = options.pop("node_config", None)
    with grid(app or make_app(build=build), nodes, node_config=node_config) as own:
        strategy = kind(build, mix, **grouped({"evaluation": NEVER, "callbacks": [keep], **options}))
        result = strategy.start(wrap(own) if wrap else own, num_rounds=num_rounds, **(start or {}))
    seen = {"progress": keep.progress, "records": keep.records, "replies": keep.replies}
    state = result.arrays.to_torch_state_dict()
    return Played(strategy=strategy, log=strategy.log, state=state, result=result, grid=own, **seen)


def untimed(strategy):
    """Return the last round's record without how long it took."""
    return replace(strategy.log, seconds=0.0)


def equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def twin(federation, nodes, num_rounds):
    """Return the global model after rounds of ``add_one``, entry by entry: each the mean over those who held it."""
    state = federation.architecture.initial_state()
    for server_round in range(1, num_rounds + 1):
        replies = []
        for partition, node_id in enumerate(nodes):
            plan = federation.architecture.train_plan(
                server_round, federation.levels.rate(server_round, node_id), partition
            )
            replies.append(trained_reply(plan, state, 1 + partition))
        means, _ = counting_mean(state, replies)
        state = {name: torch.from_numpy(own).to(state[name]) for name, own in means.items()}
    return state
