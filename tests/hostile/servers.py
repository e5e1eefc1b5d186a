"""The strategies of both APIs with three clients, of which the second is hostile: what tests ask of either."""

from dataclasses import dataclass, field

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays

from heterofl_flwr import Evaluation, HeteroFL, Limits, LocalGrid, classic
from heterofl_flwr.client import Task, answer_queries
from tests.classic.fakes import Fake, manager_of
from tests.federation.grouped import grouped
from tests.federation.tiny import build_normed, inputs, node_context

HOSTILE, CLIENTS, CLASSES = 1, 3, 4
BOUND = 20.0
OPTIONS = {"weights": "examples", "limits": Limits(norm_bound=BOUND)}


def train(model, number):
    """Move every parameter by a quarter more than the client before did."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * (number + 1))
    return model


class Forging(LocalGrid):
    """A grid that changes the answers of one node on the way."""

    change = None

    def __init__(self, app=None):
        if app is None:
            app = ClientApp()
            answer_queries(app, build_normed, lambda context: [inputs(context.node_config["partition-id"])])
        super().__init__(app, CLIENTS)

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if self.change is None:
            return replies
        return [self._changed(own) if own.metadata.src_node_id == self.hostile else own for own in replies]

    @property
    def hostile(self):
        return list(self.get_node_ids())[HOSTILE]

    def _changed(self, message):
        envelope = Envelope.of(message)
        self.change(envelope)
        forged = envelope.message(message)
        forged.metadata.__dict__.update(message.metadata.__dict__)
        return forged


class MessageServer:
    """The strategy of the Message API."""

    def __init__(self, build, mix="a1", *, grid, **options):
        self.build, self.grid = build, grid
        self.strategy = HeteroFL(build, mix, **grouped({"evaluation": Evaluation(every=0), **options}))
        self.state = self.before = self.strategy.federation.architecture.initial_state()
        self.hostile = list(grid.get_node_ids())[HOSTILE]

    def ask(self, server_round=1):
        """Open a round, and return the rates of its clients."""
        arrays, self.number = ArrayRecord(dict(self.state)), server_round
        self.asked = self.strategy.configure_train(server_round, arrays, ConfigRecord(), self.grid)
        for number, message in enumerate(self.asked):
            message.metadata.__dict__["_message_id"] = f"{number}-{server_round}"
        return [message.content["config"]["rate"] for message in self.asked]

    def good(self, number):
        """Return a client's good reply."""
        asked = self.asked[number]
        task = Task(asked, node_context(), self.build)
        model = train(task.model(), number)
        said = {"num_examples": number + 1, "labels": range(CLASSES), "metrics": {"loss": 1.0}}
        return Envelope.of(task.reply(model, **said))

    def close(self, replies):
        """End a round with the clients' envelopes, by their number, or messages; return whether one was refused."""
        sent = [own if number is None else own.message(self.asked[number]) for number, own in replies]
        new, _ = self.strategy.aggregate_train(self.number, iter(sent))
        self.state = new.to_torch_state_dict()
        return HOSTILE in self.strategy.log.failures

    def register(self, change):
        """Let the clients say what they can hold, of which one is changed."""
        self.grid.change = change
        self.ask()
        self.grid.change = None

    def collect(self, change):
        """Collect moments, of which a client's are changed; return whether they were refused."""
        self.grid.change = change
        try:
            self.strategy.configure_evaluate(1, ArrayRecord(dict(self.state)), ConfigRecord(), self.grid)
        finally:
            self.grid.change = None
        return HOSTILE in self.strategy.log.evaluate_failures


class Client(Fake):
    """A client of the classic API that answers well, but for what changes its answers."""

    change = None

    def __init__(self, cid):
        super().__init__(cid, moments=self._moments)

    def get_properties(self, ins, timeout, group_id):
        own = Envelope(config={"partition": int(self.cid), "num-partitions": CLIENTS, "moments": True})
        if self.change is not None:
            self.change(own)
        self.says = own.config
        return super().get_properties(ins, timeout, group_id)

    def _moments(self, ins):
        arrays = parameters_to_ndarrays(ins.parameters)
        task = classic.Task(arrays, ins.config, node_context(), build_normed)
        own = Envelope.of_fit(*task.moments(lambda: [inputs(int(self.cid))]))
        if self.change is not None:
            self.change(own)
        return own.fit_res()


class ClassicServer:
    """The strategy of the classic API."""

    hostile = HOSTILE

    def __init__(self, build, mix="a1", *, grid=None, **options):
        self.build = build
        self.strategy = classic.HeteroFL(build, mix, **grouped({"evaluation": Evaluation(every=0), **options}))
        self.state = self.before = self.strategy.federation.architecture.initial_state()
        self.clients = [Client(str(number)) for number in range(CLIENTS)]

    def ask(self, server_round=1):
        self.number = server_round
        parameters = ndarrays_to_parameters([own.numpy() for own in self.state.values()])
        asked = self.strategy.configure_fit(server_round, parameters, manager_of(*self.clients))
        self.asked = [instruction for _, instruction in asked]
        return [instruction.config["rate"] for instruction in self.asked]

    def good(self, number):
        asked = self.asked[number]
        task = classic.Task(parameters_to_ndarrays(asked.parameters), asked.config, node_context(), self.build)
        model = train(task.model(), number)
        return Envelope.of_fit(
            *task.reply(model, num_examples=number + 1, labels=range(CLASSES), metrics={"loss": 1.0})
        )

    def close(self, replies):
        results = [(self.clients[number], own.fit_res()) for number, own in replies]
        new, _ = self.strategy.aggregate_fit(self.number, results, [])
        self.state = dict(zip(self.before, map(torch.from_numpy, parameters_to_ndarrays(new)), strict=True))
        return HOSTILE in self.strategy.log.failures

    def register(self, change):
        self.clients[HOSTILE].change = change
        self.ask()
        self.clients[HOSTILE].change = None

    def collect(self, change):
        self.clients[HOSTILE].change = change
        parameters = ndarrays_to_parameters([own.numpy() for own in self.state.values()])
        self.strategy.configure_evaluate(1, parameters, manager_of(*self.clients))
        return HOSTILE in self.strategy.log.evaluate_failures


_OK = Status(Code.OK, "")


@dataclass
class Envelope:
    """What a reply holds."""

    arrays: dict[str, dict[str, Array]] = field(default_factory=dict)  # by the name of their record and their own
    config: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)  # further records of a message, or None to leave one out

    @classmethod
    def of(cls, message: Message) -> "Envelope":
        """Return what a message holds."""
        records = message.content.items()
        return cls(
            {name: dict(record) for name, record in records if isinstance(record, ArrayRecord)},
            dict(message.content.config_records.get("config", {})),
            dict(message.content.metric_records.get("metrics", {})),
        )

    @classmethod
    def of_fit(cls, arrays, number=0, metrics=()) -> "Envelope":
        """Return what ``fit`` of a ``NumPyClient`` answers; its arrays have numbers as names."""
        named = {str(place): Array(array) for place, array in enumerate(arrays)}
        return cls({"arrays": named}, dict(metrics), {"num-examples": number})

    @property
    def first(self) -> dict[str, Array]:
        """The arrays of the first record."""
        return next(iter(self.arrays.values()))

    @property
    def values(self) -> dict[str, Array]:
        """The arrays whose entries can be any numbers: those of the scales in int8."""
        return self.arrays.get("scales", self.first)

    def copy(self) -> "Envelope":
        """Return another envelope of the same arrays."""
        arrays = {name: dict(own) for name, own in self.arrays.items()}
        return Envelope(arrays, dict(self.config), dict(self.metrics), dict(self.more))

    def message(self, asked: Message) -> Message:
        """Return the reply to a message."""
        records = {name: _filled(ArrayRecord(), own) for name, own in self.arrays.items()}
        records |= {"config": _filled(ConfigRecord(), self.config), "metrics": _filled(MetricRecord(), self.metrics)}
        kept = {name: record for name, record in {**records, **self.more}.items() if record is not None}
        return Message(_filled(RecordDict(), kept), reply_to=asked)

    def fit_res(self) -> FitRes:
        """Return what the classic API's server gets, which has one mapping beside the arrays."""
        data = [array.data for own in self.arrays.values() for array in own.values()]
        metrics = {**self.config, **self.metrics}
        return FitRes(_OK, Parameters(data, "numpy.ndarray"), metrics.pop("num-examples", 0), metrics)


def _filled(record, values):
    record.__dict__["_data"].update(values)  # past the checks of the record, which are the sender's own
    return record
