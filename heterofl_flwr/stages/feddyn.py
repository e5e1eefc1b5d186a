"""FedDyn (Acar et al., ICLR 2021): clients whose data differ are pulled to where all their gradients agree."""

import math
from collections.abc import Mapping
from reprlib import repr as shown

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.options import Positive, with_options
from heterofl_flwr.stages.stage import ClientContext, Held, KeepingStage, Needs, Outgoing, Pull, RoundContext, State

KEY = "feddyn"
"""What the instruction to a client calls alpha, and what stands before the names of what the stage keeps."""


@with_options
class FedDyn(KeepingStage):
    """Dynamic regularisation, entry by entry.

    With theta the model that a client is sent, it minimises ``loss(w) - <g, w> + alpha / 2 |w - theta|^2``, which is
    its loss and a pull of ``alpha`` to ``theta + g / alpha``; then ``g = g - alpha (w - theta)``, and it keeps g. The
    server keeps the drift ``d`` (in the paper -h / alpha): ``d = d + (sum of w - theta over the round's holders) / m``,
    and its model is the mean of the holders plus d. Here m is the number of clients that hold an entry, in the round or
    not; with models of one size that is all of them, as in the paper. An entry that nobody held keeps still, and so
    does its drift.

    Where the server lowers the learning rate, clients move by less in a round, and could not come back from a drift
    that was summed up before: it is lowered by as much. (The paper's clients go to their minimum, at any rate.)
    """

    name = "FedDyn"
    needs = Needs(counting_mean=True, equal_weights=True, fixed_slices=True)

    alpha: Positive = 0.1
    """weight of the pull"""

    def instruction(self) -> Mapping[str, float | str]:
        """Tell clients alpha."""
        return {KEY: self.alpha}

    @classmethod
    def from_instruction(cls, config: Mapping[str, object]) -> "FedDyn | None":
        """Return the stage with the alpha that an instruction names."""
        if KEY not in config:
            return None
        alpha = config[KEY]
        if not isinstance(alpha, float) or not 0 < alpha < math.inf:
            raise ReplyError(f"the server sent {shown(alpha)} as {KEY}, expected a number over 0")
        return FedDyn(alpha)

    def pull(self, context: ClientContext) -> Pull | None:
        """Return the pull to what was received and this client's g."""

        def towards() -> Mapping[str, Tensor]:
            received = context.received()
            return {name: own + _gradient(context, name, own) / self.alpha for name, own in received.items()}

        return Pull(self.alpha, towards)

    def on_client(self, outgoing: Outgoing, context: ClientContext) -> Outgoing:
        """Note the new g; what is sent stays as it is."""
        received = context.received()
        for name, own in outgoing.tensors.items():
            theta = received[name]
            context.kept[f"{KEY}/{name}"] = _gradient(context, name, theta) - self.alpha * (own - theta)
        return outgoing

    @torch.no_grad()
    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Add the drift to the mean."""
        last = float(self.kept.get("learning-rate", 0.0))  # which the drift belongs to
        shrunk = context.learning_rate / last if last else 1.0
        self.kept["learning-rate"] = torch.tensor(context.learning_rate, dtype=torch.float64)
        for name, mean in new.items():
            old, number, drift = context.state[name], held(name), f"drift/{name}"
            before = shrunk * self.kept.get(drift, torch.zeros_like(old))
            share = number / context.holders(name).clamp(min=1)
            self.kept[drift] = torch.where(number > 0, before + share * (mean - old), before).to(old.dtype)
            new[name] = torch.where(number > 0, mean + self.kept[drift], old)
        return new


def _gradient(context: ClientContext, name: str, like: Tensor) -> Tensor:
    """Return a client's g, 0 at first and where its slice has become another."""
    kept = context.kept.get(f"{KEY}/{name}")
    return kept if kept is not None and kept.shape == like.shape else torch.zeros_like(like)
