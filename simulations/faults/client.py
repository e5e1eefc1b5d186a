"""Our own ClientApp, of which one client is struck by a fault while it answers an instruction to train."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from heterofl_flwr import messages as wire
from heterofl_flwr.app import client_app
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from simulations.faults.fault import Fault
from simulations.faults.kinds import KINDS

STEP = 3
"""Training steps that are done when a client is in the midst of them."""


class Faulty(ClientApp):
    """Hands messages on; the fault strikes at its moment of them."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        fault = Fault.current()
        number = round_of(message)
        if number is None or context.node_config["partition-id"] != fault.partition:
            return client_app.app(message, context)
        fault.note("client", os.getpid())
        self._reach(fault, "before", number)
        with _midway(partial(self._reach, fault, "during", number)):
            reply = client_app.app(message, context)
        self._reach(fault, "after", number)
        return reply

    def _reach(self, fault: Fault, moment: str, number: int) -> None:
        kind = KINDS[fault.kind]
        # In the midst of training no code of a server runs, so that moment of its is a client's.
        if (kind.actor == "client" or (kind.actor == "server" and moment == "during")) and fault.strikes(
            moment, number
        ):
            kind.act(fault)


app = Faulty()


def round_of(message: Message) -> int | None:
    """Return the round of an instruction to train; None of any other message."""
    config = message.content.get(wire.CONFIG)
    if message.metadata.message_type != "train" or not isinstance(config, ConfigRecord):
        return None
    return wire.value_of(config, wire.SERVER_ROUND, int, "the server")


@contextmanager
def _midway(reach: Callable[[], None]) -> Iterator[None]:
    """Call a function in the midst of a client's training."""

    def train(works: Sequence[TrainingJob], options: TrainOptions, **more: Any) -> object:
        steps = itertools.count()

        def on_step(*step: object) -> None:
            del step
            if next(steps) == STEP:
                reach()

        hook = works[0].model.register_forward_pre_hook(on_step)
        try:
            return train_together(works, options, **more)
        finally:
            hook.remove()

    with mock.patch.object(client_app, "train_together", train):
        yield
