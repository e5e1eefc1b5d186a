"""The experiment for a comparison with the authors' code: MNIST with levels a to e, as in the paper."""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from heterofl_flwr.core import Mix
from heterofl_flwr.data import Dataset, load_dataset
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.global_model import GlobalModel
from heterofl_flwr.federation.options import Options
from heterofl_flwr.federation.sampling import Participation
from heterofl_flwr.nn import PAPER
from simulations.results.paper import CLIENTS_A_ROUND

MIX = "a1-b1-c1-d1-e1"


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of the parts of a round, and its accuracies; 0 for parts that were not run."""

    train: float
    moments: float = 0.0
    test: float = 0.0
    accuracy: float = 0.0
    local_accuracy: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds of the whole round."""
        return self.train + self.evaluation

    @property
    def evaluation(self) -> float:
        """Seconds of static batch norm and of the test."""
        return self.moments + self.test


@dataclass(frozen=True, slots=True)
class Experiment:
    """MNIST in the folder ``root`` (empty: the default), split among clients of some levels."""

    root: str
    clients: int
    mix: str = MIX
    split: str = "iid"

    def data(self) -> Dataset:
        """Return the data set."""
        return load_dataset("mnist", self.root or None)

    @property
    def fraction(self) -> float:
        """Fraction of the clients that train in a round."""
        return CLIENTS_A_ROUND / self.clients

    def control(self, assignment: str = "fix", variant: str = "bn_1_1") -> str:
        """Return the authors' name of the experiment; ``variant`` is norm, Scaler and mask in their notation."""
        return f"1_{self.clients}_{self.fraction:g}_{self.split}_{assignment}_{self.mix}_{variant}"


def members(clients: int, seed: int, mix: str = MIX, server_round: int = 1) -> Mapping[int, float]:
    """Return the rates of the clients that this package draws to train in a round under *Fix*, by partition."""
    options = Options(sampling=Participation(fraction_train=CLIENTS_A_ROUND / clients))
    federation = Federation(GlobalModel(PAPER["mnist"].build(), Mix.parse(mix), options, seed))
    federation.register({number: Capability(partition=number, num_partitions=clients) for number in range(clients)})
    drawn = federation.levels.sample(server_round, range(clients), "train")
    return {partition: federation.levels.rate(server_round, partition) for partition in drawn}


def balanced_seed(clients: int) -> int:
    """Return the first seed with which two clients of each level train in round 1."""
    return next(seed for seed in itertools.count() if is_balanced(members(clients, seed).values()))


def is_balanced(rates: Iterable[float]) -> bool:
    """Whether ``rates`` has equally many clients of each level in ``MIX``."""
    counts = Counter(rates)
    return len(counts) == len(Mix.parse(MIX).rates) and len(set(counts.values())) == 1


def median(rounds: Sequence[Parts]) -> Parts:
    """Return the median of each part."""
    return Parts(*map(statistics.median, zip(*map(astuple, rounds), strict=True)))
