"""FedH2L: clients of different architectures learn from one another's posteriors on a shared seed set.

A round has two exchanges. Clients train on their own data and publish what they say of a batch of seed examples; each
then gets what its peers published, and learns from it. The server relays, and never sees a parameter: this all-to-all
exchange stands for the decentralised form.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor, nn, stack, zeros

from heterofl_flwr import messages as wire
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.methods.exchange import Exchange
from heterofl_flwr.methods.federation import State


class FedH2L(Exchange):
    """Train a model on each client, of whatever architecture, with the help of its peers.

    Clients answer ``train.publish`` and ``train.learn``; see ``heterofl_flwr.learn.distill`` for what they do.

    Parameters
    ----------
    classes : int
        Number of classes, of which a posterior has an entry each.
    mix : str | Mix
        The rates at which clients build their models, and their shares; a client keeps its rate.
    seed_size : int
        Examples of the seed set, which every client has.
    seed_batch : int
        How many of them a round uses, drawn anew.
    temperature : float
        By what clients divide logits before they become posteriors.
    **options
        Those of ``HeteroFLBase`` that do not tell what is sent: ``seed``, ``fraction_train``, ``evaluation`` and so on.
    """

    def __init__(
        self,
        classes: int,
        mix: str | Mix = "a1",
        *,
        seed_size: int = 1000,
        seed_batch: int = 100,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            _nothing,
            mix,
            classes=classes,
            seed_size=seed_size,
            seed_batch=seed_batch,
            temperature=temperature,
            shared=(),
            label_rows=(),
            **options,
        )

    def _slices(self, arrays: ArrayRecord, state: State) -> Mapping[int, ArrayRecord]:
        del arrays, state
        return {node_id: ArrayRecord() for node_id in self._rates}

    def _heard(self, published: Mapping[int, Tensor]) -> Mapping[int, ArrayRecord]:
        """Return for each client what all others published."""
        peers = {node_id: [said for other, said in published.items() if other != node_id] for node_id in published}
        return {
            node_id: ArrayRecord({wire.POSTERIORS: stack(own) if own else zeros(0, *self._shape)})
            for node_id, own in peers.items()
        }


def _nothing(rate: float) -> nn.Module:
    """Return what the server holds: a model without parameters."""
    del rate
    return nn.Identity()
