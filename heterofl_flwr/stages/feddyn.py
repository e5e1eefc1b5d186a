"""FedDyn (Acar et al., ICLR 2021): a penalty that aligns clients' minima with the minimum of the mean loss."""

from typing import ClassVar

import torch

from heterofl_flwr.common.options import Positive, group, with_options
from heterofl_flwr.nn.penalty import Quadratic
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, State, client_stage
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, StatefulStage


@client_stage("feddyn")
@group
class ClientFedDyn(ClientStage):
    """Minimise ``loss(w) - <g, w> + alpha / 2 |w - theta|^2``.

    Here w are the client's parameters, and theta the received parameters. The client stores ``g``, at first 0. After
    training, it sets ``g = g - alpha (w - theta)``.
    """

    stateful: ClassVar[bool] = True

    alpha: Positive
    """weight of the penalty"""

    def quadratic(self, context: ClientContext) -> Quadratic:
        """Return the penalty ``-<g, w> + alpha / 2 |w - theta|^2``, up to a constant."""
        received = context.received()
        return Quadratic(  # the penalty is alpha / 2 |w - (theta + g / alpha)|^2 plus a constant
            self.alpha, {name: theta + context.stored(name, theta) / self.alpha for name, theta in received.items()}
        )

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Store the new ``g``. Return the update unchanged."""
        received = context.received()
        for name, trained in update.tensors.items():
            theta = received[name]
            context.state[name] = context.stored(name, theta) - self.alpha * (trained - theta)
        return update


@with_options
class FedDyn(StatefulStage):
    """FedDyn (dynamic regularisation) on the server, computed for each entry of the model.

    For each entry, the server stores the drift ``d`` (in the paper -h / alpha). After a round, it sets
    ``d = d + sum(w - theta) / m``. The sum is over the clients that trained the entry in this round. Here theta is the
    entry's value before the training of a client, w the value after it, and m the number of all clients whose slices
    contain the entry. The entry's new value is the mean plus d. If no client trained the entry in this round, its value
    and d stay as they are.

    If the learning rate differs by a factor from that of the previous round, all drifts are first multiplied by this
    factor, also those of entries that no client trained.
    """

    needs = Needs(counting_mean=True, equal_weights=True)

    alpha: Positive = 0.1
    """weight of the penalty"""

    def client(self) -> ClientStage:
        """Return the client half of this stage."""
        return ClientFedDyn(alpha=self.alpha)

    @torch.no_grad()
    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Update the drift, and add it to the mean; entries that no client held keep the old value."""
        previous = float(self.tensors.get("learning-rate", 0.0))
        shrinkage = context.learning_rate / previous if previous else 1.0
        self.tensors["learning-rate"] = torch.tensor(context.learning_rate, dtype=torch.float64)
        for name, mean in new.items():
            old, number, key = context.state[name], holders(name), f"drift/{name}"
            drift = shrinkage * self.tensors.get(key, torch.zeros_like(old))
            share = number / context.holders(name).clamp(min=1)
            self.tensors[key] = torch.where(number > 0, drift + share * (mean - old), drift).to(old.dtype)
            new[name] = torch.where(number > 0, mean + self.tensors[key], old)
        return new
