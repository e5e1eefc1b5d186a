"""HeteroFL inside each family of architectures, FedH2L between families.

A round has two exchanges:

1. Each client trains a slice of its family's model on its own data, as in HeteroFL, and publishes what the trained
   slice says of the round's seed examples.
2. Each gets the posteriors of the other families, one mean a family, does the seed steps of FedH2L, and returns its
   slice. The server averages slices within each family.

The clients distil, and not the server: a seed step is held against a client's own data, which the server lacks, and so
the server needs no seed set and does no training. The price is a second exchange. A client keeps its slice from the
first to the second, so that parameters travel once each way; posteriors are a few kilobytes, whatever the number of
clients.
"""

from collections.abc import Mapping
from functools import partial
from typing import Unpack

from flwr.app import ArrayRecord
from torch import Tensor, stack

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.engine import Engine
from heterofl_flwr.federation.families import Families, side_by_side
from heterofl_flwr.nn.models import Build
from heterofl_flwr.strategies.fedh2l import Exchange, ExchangeKeywords


class Hybrid(Exchange):
    """Train one global model a family, over clients of unequal size, with the help of the other families.

    A client's family is the remainder of its partition by the number of families; messages name it (``family``). The
    global state has each family's parameters under its name and a dot, and evaluation its metrics as
    ``family/metric``. ``global-accuracy`` and the like are then plain means over families, all others are over clients.
    Clients answer ``train.publish`` and ``train.learn``; see ``heterofl_flwr.training.distill`` for what they do.

    Parameters
    ----------
    builds : Mapping[str, Callable[[float], nn.Module]]
        For each family, by name, the function from a rate to its model.
    mix : str | Mix
        The rates of the clients and their shares, in each family.
    classes, **keywords
        Those of ``FedH2L``.
    """

    def __init__(
        self,
        builds: Mapping[str, Build],
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        classes: int,
        **keywords: Unpack[ExchangeKeywords],
    ) -> None:
        super().__init__(partial(side_by_side, builds), mix, classes=classes, **keywords)
        if self.federation.personal:
            raise ConfigError(
                "the models of a family are averaged whole, so no parameter can stay with a client: use "
                "heterofl_flwr.HeteroFL or FedH2L, or leave shared"
            )
        self.engine = Engine(Families(builds, self.federation), counts_examples=self.engine.counts_examples)

    def _peer_posteriors(self, published: Mapping[int, Tensor]) -> Mapping[int, ArrayRecord]:
        """Return for each client what the other families say, one mean a family; a family shares a record."""
        by_family = self.federation.split(published)
        means = {name: stack(list(own.values())).mean(0) for name, own in by_family.items() if own}
        records = {
            name: self._pack_posteriors([mean for other, mean in means.items() if other != name]) for name in means
        }
        return {node_id: records[self.federation.family(node_id)] for node_id in published}
