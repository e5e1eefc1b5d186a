"""The apps of a run with a fault: our own ClientApp and ServerApp, and a grid of which one node comes and goes.

``python -m simulations.faults.apps FOLDER [--resume]`` is the process of a run's server on a grid of ours.
"""

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr import messages
from heterofl_flwr.app import client_app
from heterofl_flwr.app.server_app import run
from heterofl_flwr.app.task import load_task
from heterofl_flwr.compat import SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.federation.records import Progress, RoundCallback
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.runs import checkpoint, models
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.settings import Flat, from_flat, to_flat
from heterofl_flwr.strategies.size_guard import Relay
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from simulations.faults.fault import VARIABLE, Fault
from simulations.faults.kinds import KINDS
from simulations.program import status_of

CLIENT = "simulations.faults.apps:client"
SERVER = "simulations.faults.apps:server"
STEP = 3  # training steps that are done when a client is in the midst of them


def round_of(message: Message) -> int | None:
    """Return the round of an instruction to train; None of any other message."""
    config = message.content.get(messages.CONFIG)
    if message.metadata.message_type != "train" or not isinstance(config, ConfigRecord):
        return None
    return messages.read_value(config, messages.SERVER_ROUND, int, "the server")


class FaultyClient(ClientApp):
    """Our own ClientApp, of which one client is struck by a fault while it answers an instruction to train."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        fault = Fault.current()
        number = round_of(message)
        if number is None or context.node_config["partition-id"] != fault.partition:
            return client_app.app(message, context)
        fault.note("client", os.getpid())
        self._reach(fault, "before", number)
        with self._midway(fault, number):
            reply = client_app.app(message, context)
        self._reach(fault, "after", number)
        return reply

    def _reach(self, fault: Fault, moment: str, number: int) -> None:
        kind = KINDS[fault.kind]
        # In the midst of training no code of a server runs, so that moment of its is a client's.
        here = kind.actor == "client" or (kind.actor == "server" and moment == "during")
        if here and fault.strikes(moment, number):
            kind.act(fault)

    @contextmanager
    def _midway(self, fault: Fault, number: int) -> Iterator[None]:
        """Reach the moment in the midst of a client's training."""

        def train(jobs: Sequence[TrainingJob], options: TrainOptions, **more: Any) -> object:
            steps = itertools.count()

            def on_step(*_: object) -> None:
                if next(steps) == STEP:
                    self._reach(fault, "during", number)

            hook = jobs[0].model.register_forward_pre_hook(on_step)
            try:
                return train_together(jobs, options, **more)
            finally:
                hook.remove()

        with mock.patch.object(client_app, "train_together", train):
            yield


client = FaultyClient()


class Watched(Relay):
    """Notes when a round's instructions are sent and when its replies are received, on any grid."""

    def __init__(self, grid: Grid, fault: Fault) -> None:
        super().__init__(grid)
        self._fault = fault
        self._kind = KINDS[fault.kind]

    def __getattr__(self, name: str) -> Any:
        """Return what a grid may have beside Flower's interface."""
        if name.startswith("__"):  # a copy is asked for these before it has a grid
            raise AttributeError(name)
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        messages = list(messages)
        self._before(messages)
        return self._grid.push_messages(messages)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies; all of them, so that it is known when they are received."""
        messages = list(messages)
        number = self._before(messages)
        replies = self._grid.send_and_receive(messages, timeout=timeout)
        if number is None:
            return replies
        replies = self._change(list(replies), messages, number)
        self._fault.note("trained", number)
        return replies

    def _before(self, messages: list[Message]) -> int | None:
        """Reach the moment before instructions to train are sent; return their round."""
        number = next(filter(None, map(round_of, messages)), None)
        if number is not None and self._kind.actor == "server" and self._fault.strikes("before", number):
            self._kind.act(self._fault)
        return number

    def _change(self, replies: list[Message], messages: list[Message], number: int) -> list[Message]:
        """Return those of a round's replies that reach the server."""
        return replies


class Unsteady(Watched):
    """A grid of which one node comes, goes, or answers late, if that is the fault; missing replies are removed."""

    def __init__(self, grid: Grid, fault: Fault) -> None:
        super().__init__(grid, fault)
        self._ids = list(grid.get_node_ids())
        self._node = self._ids[fault.partition]
        self._moves = self._kind.actor == "grid" and fault.kind != "reply-late"  # whether it comes or goes
        self._there = fault.kind != "node-joins"
        self._next = 1
        self._late: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        if self._fault.kind == "node-returns" and self._next == self._fault.server_round + 1:
            self._there = True
        if self._moves and self._fault.strikes("before", self._next):
            self._there = not self._there
        return [node_id for node_id in self._ids if node_id != self._node or self._there]

    def _change(self, replies: list[Message], messages: list[Message], number: int) -> list[Message]:
        self._next = number + 1
        away = {self._ids[partition] for partition, server_round in self._fault.missing if server_round == number}
        replies = [reply for reply in replies if reply.metadata.src_node_id not in away]
        own = [reply for reply in replies if reply.metadata.src_node_id == self._node]
        others = [reply for reply in replies if reply not in own]
        if self._fault.kind == "reply-late":
            if self._fault.strikes(self._fault.moment, number):
                self._late = own
                return others
            return self._delayed(replies, own)
        for moment in ("during", "after"):
            if self._moves and self._fault.strikes(moment, number):
                self._there = not self._there
                if not self._there:
                    return [*others, *self._unavailable(messages, moment)]
        return replies

    def _unavailable(self, messages: list[Message], moment: str) -> Iterator[Message]:
        """Report the node that left, as the SuperLink does while a node works; nobody does later."""
        if moment == "during":
            asked = next(message for message in messages if message.metadata.dst_node_id == self._node)
            error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=asked)
            error.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID  # which answers for a node that is gone
            yield error

    def _delayed(self, replies: list[Message], own: list[Message]) -> list[Message]:
        """Return the reply of the round before among those of this one: first, beside the node's own, or last."""
        place = {"before": 0, "during": replies.index(own[0]), "after": len(replies)}[self._fault.moment]
        late, self._late = self._late, []
        return [*replies[:place], *late, *replies[place:]]


class Watcher(RoundCallback):
    """Notes when a round's state is saved."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def on_round_end(self, progress: Progress) -> bool:
        """Reach the moment after the checkpoint, where that is the fault's."""
        kind, number = KINDS[self._fault.kind], progress.record.server_round
        self._fault.note("saved", number)
        if kind.actor == "server" and kind.whole and self._fault.strikes("after", number):
            kind.act(self._fault)
        return False


def settings_of(fault: Fault, *, resume: bool) -> Mapping[str, Flat]:
    """Return the settings of a small run on the digits."""
    settings = {
        "num-rounds": fault.num_rounds,
        "seed": fault.seed,
        "mix": "a1-e1",
        "assignment": "fix",
        "model.name": "mlp",
        "model.hidden": "16",
        "train.epochs": 1,
        "evaluate.every": 0,
        "engine.name": "plain",  # the same bits in one process and in several
        "engine.timeout": fault.deadline,
        "sample.fraction": 1.0,
        "sample.min-nodes": fault.clients,
        "run.callbacks": "",
        "run.dir": str(fault.run),
        "run.resume": resume,
    }
    return to_flat(from_flat({**settings, **KINDS[fault.kind].settings}))


@contextmanager
def half_written(fault: Fault) -> Iterator[None]:
    """Let the fault strike when half of what a round, or the run, leaves behind is written."""
    kind = KINDS[fault.kind]
    module, stem = (models, "a") if kind.last else (checkpoint, f"round-{fault.server_round:06d}")
    name = f"{stem}.safetensors"

    def write(path: Path, data: bytes) -> None:
        if path.name == name and fault.strikes("after", fault.server_round):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Where write_atomic has a file that is not whole yet.
            path.with_name(f".{name}.{os.getpid()}.tmp").write_bytes(data[: len(data) // 2])
            kind.act(fault)
        write_atomic(path, data)

    with ExitStack() as stack:
        if kind.actor == "server" and not kind.whole:
            stack.enter_context(mock.patch.object(module, "write_atomic", write))
        yield


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run HeteroFL, as a SuperLink starts it."""
    fault = Fault.current()
    fault.note("server", os.getpid())
    with half_written(fault):
        run(Watched(grid, fault), load_task(context.run_config), [Watcher(fault)])
    fault.note("ended", fault.num_rounds)


def serve(folder: str, resume: bool) -> None:
    """Run or resume a run without a network, and end this process as the command ``heterofl`` does."""
    os.environ[VARIABLE] = folder
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    fault = Fault.read(folder)
    config = settings_of(fault, resume=resume)

    def work() -> None:
        make = partial(RayGrid, at_once=2) if KINDS[fault.kind].on_ray else LocalGrid
        with half_written(fault), make(CLIENT, fault.clients, run_config=config) as grid:
            run(Unsteady(grid, fault), load_task(config), [Watcher(fault)])
            fault.note("ended", fault.num_rounds)

    sys.exit(status_of("heterofl", work))


if __name__ == "__main__":
    serve(sys.argv[1], "--resume" in sys.argv[2:])
