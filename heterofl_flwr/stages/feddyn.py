"""FedDyn (Acar et al., ICLR 2021): a penalty that pulls clients to a point where their gradients agree."""

from typing import ClassVar

import torch

from heterofl_flwr.common.options import Positive, group, with_options
from heterofl_flwr.nn.penalty import Quadratic
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, State, client_stage
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, StatefulStage


@client_stage("feddyn")
@group
class ClientFedDyn(ClientStage):
    """Minimise ``loss(w) - <g, w> + alpha / 2 |w - theta|^2``, where theta is the received model.

    Up to a constant the penalty is ``alpha / 2 |w - (theta + g / alpha)|^2``. After training the client stores ``g = g
    - alpha (w - theta)``.
    """

    stateful: ClassVar[bool] = True

    alpha: Positive
    """weight of the penalty"""

    def quadratic(self, context: ClientContext) -> Quadratic:
        """Return FedDyn's penalty, a ``Quadratic``."""
        received = context.received()
        return Quadratic(
            self.alpha, {name: theta + context.stored(name, theta) / self.alpha for name, theta in received.items()}
        )

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Store the new linear term ``g`` of the client's penalty; return the update unchanged."""
        received = context.received()
        for name, trained in update.tensors.items():
            theta = received[name]
            context.state[name] = context.stored(name, theta) - self.alpha * (trained - theta)
        return update


@with_options
class FedDyn(StatefulStage):
    """FedDyn (dynamic regularisation) on the server, computed for each entry of the model.

    The server stores the drift ``d`` (in the paper -h / alpha): ``d = d + (sum of w - theta over the round's holders) /
    m``. Its model is the mean over the holders plus d. Here m is the number of all clients that hold an entry, in the
    round or not. If all models have the same size, it is the number of clients, as in the paper. An entry without a
    holder in the round keeps its value and its drift.

    With a lower learning rate, clients move less in a round, and could not return from an earlier, larger drift. So
    when the server lowers the learning rate, it lowers the drift by the same factor. (In the paper, clients reach their
    minimum at any learning rate.)
    """

    name = "FedDyn"
    needs = Needs(counting_mean=True, equal_weights=True)

    alpha: Positive = 0.1
    """weight of the penalty"""

    def client(self) -> ClientStage:
        """Return the half of this stage that runs on clients."""
        return ClientFedDyn(alpha=self.alpha)

    @torch.no_grad()
    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Update the drift, which is the server's state of FedDyn; return the mean plus the drift."""
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
