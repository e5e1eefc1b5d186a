"""Small runs on the digits, and faults that strike them once, at a place and in a round.

A run reaches, in each round, the places ``sent`` (the instructions are ready), and in each client ``begins``, ``steps``
(three training steps are done) and ``trained``; then ``received``, ``halfway`` (half of the checkpoint is written) and
``saved``, and at the end ``models`` (half of the first model is written).
"""

import itertools
import os
from collections import Counter
from contextlib import contextmanager
from unittest import mock

from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid, RoundCallback, report
from heterofl_flwr.app import client_app, server_app
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.runs import checkpoint, models
from heterofl_flwr.settings.validate import from_flat, to_flat
from heterofl_flwr.training import train_together

ROUNDS, STRUCK, CLIENTS, HIT = 4, 3, 4, 1
SETTINGS = {
    "num-rounds": ROUNDS,
    "mix": "a1-e1",
    "assignment": "fix",
    "model.name": "mlp",
    "model.hidden": "16",
    "train.epochs": 1,
    "train.batch-size": 50,
    "evaluate.every": 0,
    "server.stages": "adam(eta=0.01)",
    "engine.name": "plain",
    "sample.fraction": 1.0,
    "sample.min-nodes": 2,
    "run.callbacks": "",
}


class Killed(KeyboardInterrupt):
    """Ends a run in this process as a signal ends a process: nobody handles it."""


def die():
    raise Killed


class Fault:
    """Something that happens once, at a place and in a round, maybe in one client alone."""

    def __init__(self, place="", number=STRUCK, act=die, partition=None):
        self._place, self._act, self._partition = (place, number), act, partition
        self._received = Counter()
        self.struck = False

    def __call__(self, place, number, partition=None):
        """Note that a run has reached a place, and strike it there."""
        self._received[number] += place == "received"
        if not self.struck and (place, number) == self._place and self._partition in (None, partition):
            self.struck = True
            self._act()

    @property
    def rounds_lost(self):
        """How many rounds were trained again although their replies had come."""
        return sum(times - 1 for times in self._received.values() if times)


class Client(ClientApp):
    """Our own ClientApp, which a fault may strike while it trains."""

    fault = Fault()

    def __call__(self, message, context):
        if message.metadata.message_type != "train":
            return client_app.app(message, context)
        at = message.content["config"]["server-round"], context.node_config["partition-id"]
        self.fault("begins", *at)

        def train(jobs, options, **more):
            steps = itertools.count()

            def on_step(*_):
                if next(steps) == 3:
                    self.fault("steps", *at)

            hook = jobs[0].model.register_forward_pre_hook(on_step)
            try:
                return train_together(jobs, options, **more)
            finally:
                hook.remove()

        with mock.patch.object(client_app, "train_together", train):
            reply = client_app.app(message, context)
        self.fault("trained", *at)
        return reply


class Grid(LocalGrid):
    """A grid some of whose nodes are away in some rounds, and some of whose replies do not come."""

    fault, missing, away = Fault(), frozenset(), frozenset()  # pairs of a partition and a round
    number = 1

    def get_node_ids(self):
        ids = super().get_node_ids()
        return [own for partition, own in enumerate(ids) if (partition, self.number) not in self.away]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if not messages or messages[0].metadata.message_type != "train":
            return super().send_and_receive(messages, timeout=timeout)
        number = messages[0].content["config"]["server-round"]
        self.fault("sent", number)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        partitions = {own: partition for partition, own in enumerate(super().get_node_ids())}
        self.fault("received", number)
        self.number = number + 1
        lost = {reply for reply in replies if (partitions[reply.metadata.src_node_id], number) in self.missing}
        return self.received([reply for reply in replies if reply not in lost], lost)

    def received(self, replies, lost):
        """Return the replies that reach the server, of which some are lost."""
        return replies


class Saved(RoundCallback):
    """Tells when a round's checkpoint is written."""

    def __init__(self, fault):
        self._fault = fault

    def on_round_end(self, progress):
        self._fault("saved", progress.record.server_round)
        return False


@contextmanager
def half_written(fault):
    """Let a fault strike when half of a checkpoint, or of the final model, is written; draw no report."""
    names = {f"round-{number:06d}.safetensors": ("halfway", number) for number in range(1, ROUNDS + 1)}
    names["a.safetensors"] = "models", ROUNDS

    def write(path, data):
        if path.name in names:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # where a file is that is not whole yet
            half.write_bytes(data[: len(data) // 2])
            fault(*names[path.name])
            half.unlink()
        write_atomic(path, data)

    with (
        mock.patch.object(checkpoint, "write_atomic", write),
        mock.patch.object(models, "write_atomic", write),
        mock.patch.object(report, "write_report", lambda folder: folder.report),
    ):
        yield


def play(folder, fault=None, *, grid=Grid, missing=(), away=(), resume=False, **settings):
    """Run or resume a run, struck by a fault, and return its models."""
    config = to_flat(from_flat({**SETTINGS, **settings, "run.dir": str(folder), "run.resume": resume}))
    fault = fault or Fault()
    client = Client()
    client.fault = fault
    with half_written(fault), grid(client, CLIENTS, run_config=config) as own:
        own.fault, own.missing, own.away = fault, set(missing), set(away)
        server_app.run(own, load_workload(config), [Saved(fault)])
    return {
        f"{path.stem}/{name}": value
        for path in sorted((folder / "models").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
