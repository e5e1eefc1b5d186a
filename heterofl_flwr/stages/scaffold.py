"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates that reduce the drift of clients with different data."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.nn.penalty import Quadratic
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, State, client_stage
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, StatefulStage, Update

STEP = "scaffold-step"
"""Config key of a reply: the number of local steps times the learning rate."""


@client_stage("scaffold")
@dataclass(frozen=True)
class ClientScaffold(ClientStage):
    """Local steps with ``gradient - c_i + c``, then an update of ``c_i`` (option II in line 12 of algorithm 1).

    Here ``c_i`` is the client's control variate, and ``c`` the server's.
    """

    stateful: ClassVar[bool] = True

    def quadratic(self, context: ClientContext) -> Quadratic:
        """Return SCAFFOLD's penalty ``<c - c_i, w>``."""
        controls = context.broadcast.items()
        return Quadratic(direction={name: control - context.stored(name, control) for name, control in controls})

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Store ``c_i = c_i - c + (x - y_i) / (K * learning rate)``; add ``K * learning rate`` to the reply.

        Here x is the received model, y_i the trained model, and K the number of local steps.
        """
        if context.total_step <= 0:
            raise ConfigError("scaffold: total_step is 0; expected a loss that includes the penalty of the stages")
        received = context.received()
        for name, control in context.broadcast.items():
            gradient = (received[name] - update.tensors[name]) / context.total_step
            context.state[name] = context.stored(name, control) - control + gradient
        return replace(update, fields={**update.fields, STEP: context.total_step})


class Scaffold(StatefulStage):
    """SCAFFOLD with a control variate ``c`` for each entry of the model.

    After a round, ``c = c + (sum of the changes of c_i over the clients that trained the entry in this round) / m``.
    Here m is the number of all clients whose slices contain the entry. The new model is the mean, as without this
    stage.

    Clients send K (number of local steps) times the learning rate. From the received model x and the trained model y_i,
    the server computes the change of c_i: ``(x - y_i) / (K * learning rate) - c``.
    """

    needs = Needs(counting_mean=True, equal_weights=True)

    def client(self) -> ClientStage:
        """Return the client half of this stage."""
        return ClientScaffold()

    def broadcast(self, context: RoundContext) -> State:
        """Return the control variate ``c`` for the clients; begin this round's mean of gradients."""
        if context.learning_rate <= 0:
            raise ConfigError(
                "Scaffold divides by the learning rate of the clients, and the server sends none: expected "
                "HeteroFL(training=Training(learning_rate=0.05)), or lr in the train_config of start"
            )
        zeros = {name: torch.zeros_like(tensor) for name, tensor in context.state.items()}
        self._gradients = Aggregation(zeros, context.rows, extra_rows=context.extra_rows)
        return {name: self.tensors.get(name, zero) for name, zero in zeros.items()}

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the update unchanged. Raise ``ReplyError`` if it has examples but no valid ``scaffold-step``."""
        step = update.fields.get(STEP)
        is_valid = isinstance(step, float) and 0.999 * context.learning_rate <= step < math.inf
        if update.weight and not is_valid:  # a client without examples takes no step
            raise ReplyError(f"{STEP} is {step!r}, expected the learning rate {context.learning_rate:g} or more")
        return update

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Add the client's gradient, averaged over its local steps, to this round's mean over clients."""
        received, step = update.plan.extract(context.state), cast("float", update.fields[STEP])
        gradients = {name: (received[name] - tensor) / step for name, tensor in update.tensors.items()}
        self._gradients.add(update.plan, gradients, labels=update.labels)

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Update the control variate ``c``. Return the mean unchanged."""
        for name, gradient in self._gradients.result().items():
            control, share = self.tensors.get(name, torch.zeros_like(gradient)), holders(name) / context.holders(name)
            self.tensors[name] = control + torch.where(holders(name) > 0, share * (gradient - control), 0).to(control)
        return new
