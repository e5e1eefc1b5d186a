"""The server's options in groups, each checked in one place.

``Evaluation``, ``Limits`` and ``Privacy`` are groups too; they lie beside the code that uses them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, Strict

from heterofl_flwr.core.counting_mean import Aggregator, Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.plan import ALL
from heterofl_flwr.core.reply_checks import LARGEST_ENTRY, LabelRule
from heterofl_flwr.core.robust import Robust, RobustAggregator
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.limits import REPLIES, Limits, MinReplies
from heterofl_flwr.groups import Count, Natural, NotNegative, Share, ShareOrNone, group
from heterofl_flwr.stages.chain import Chain, Link, OpenMean
from heterofl_flwr.stages.clip import Clip
from heterofl_flwr.stages.compress import Compress, Upload
from heterofl_flwr.stages.labels import AllRows, TrainedRows
from heterofl_flwr.stages.noise import Noise
from heterofl_flwr.stages.privacy import Privacy, Spent
from heterofl_flwr.stages.stage import Stage
from heterofl_flwr.stages.untrained import Untrained

Assignment = Literal["fix", "dynamic"]

Schedule = Callable[[int], float]
"""From the round, counted from 1, to the learning rate."""


def multi_step(learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` after each milestone (Table 6)."""
    return lambda server_round: learning_rate * factor ** sum(milestone < server_round for milestone in milestones)


_Fewest = Annotated[Natural | None, "an integer of 0 or more"]


@group
class Sampling:
    """Which clients take part in a round, and how long a round waits for them."""

    fraction_train: Share = Field(default=1.0, alias="fraction")
    """share of the clients that train in a round, rounded up"""
    fraction_evaluate: ShareOrNone = Field(default=1.0, exclude=True)
    min_train_nodes: _Fewest = Field(default=None, exclude=True)
    min_evaluate_nodes: _Fewest = Field(default=None, exclude=True)
    min_available_nodes: Natural = Field(default=2, alias="min-nodes")
    """nodes that each round waits for, sample.wait seconds at most; 'heterofl run' waits for all"""
    spare: NotNegative = 0.0
    """share of clients that are asked to train beyond those that are needed; a round ends as soon as enough have
    answered, so which of them count is no longer the same in each run, and engine.window does not hold
    """
    min_replies: Annotated[MinReplies, f"'auto', {REPLIES}"] = "auto"
    """good replies below which a round, and with it the run, fails: a number, a share of the clients that it needs, or
    half of them (auto)
    """
    wait: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=True)] = 60.0
    """seconds to wait for sample.min-nodes before the run fails"""

    @property
    def available(self) -> int:
        """How many nodes a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes or 0, self.min_evaluate_nodes or 0, 1)

    def number(self, clients: int, purpose: Literal["train", "evaluate"]) -> int:
        """Return how many of some clients take part, rounded up; with a least number rounded down, as in ``FedAvg``."""
        share, least = self.fraction_train, self.min_train_nodes
        if purpose == "evaluate":
            share, least = self.fraction_evaluate, self.min_evaluate_nodes
        if least is not None:
            return max(int(clients * share), least, 1)
        return max(math.ceil(Fraction(str(share)) * clients), 1)

    def with_spare(self, number: int) -> int:
        """Return how many clients are asked to train where this many are needed."""
        return number + math.ceil(Fraction(str(self.spare)) * number)


@group
class Transfer:
    """What travels between the server and the clients."""

    slice_rule: SliceRule = "prefix"
    roll_by: Count = 1
    shared: Annotated[Sequence[str], "patterns of parameters, as ['hidden.*']"] = ALL
    upload: Upload = "float32"
    learning_rate: Annotated[Schedule | None, "a function from the round to a number"] = None
    proximal_mu: Annotated[NotNegative | None, "a number of 0 or more"] = None

    def __post_init__(self) -> None:
        if self.roll_by > 1 and self.slice_rule != "rolling":
            raise ConfigError(f"roll_by is {self.roll_by}, expected slice_rule='rolling' beside it")


@group
class Averaging:
    """What the server makes of the replies."""

    weights: Weights = "equal"
    label_rows: Annotated[Sequence[str] | None, "names of parameters"] = None
    labels: LabelRule = "sent"
    fidelity: Annotated[Fidelity, "Fidelity(...)"] = Fidelity()
    robust: Annotated[Robust | None, "Robust(...)"] = None
    aggregator: Annotated[OpenMean, "Aggregator, a subclass of it, or what opens one"] = Aggregator
    stages: Annotated[Sequence[Stage], "a list of stages"] = ()

    def __post_init__(self) -> None:
        if self.robust and self.aggregator is not Aggregator:
            raise ConfigError("robust and aggregator both replace the counting mean; expected one of them")

    @property
    def link(self) -> Link:
        """The link of the chain that sums."""
        if self.robust:
            return Link(open=partial(RobustAggregator, robust=self.robust), kind="robust", weights=self.weights)
        if self.aggregator is not Aggregator:
            return Link(open=self.aggregator, kind="other", weights=self.weights)
        return Link(weights=self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All options of the server; here they are checked against one another."""

    sampling: Sampling = Sampling()
    transfer: Transfer = Transfer()
    averaging: Averaging = Averaging()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        for own, kind in ((self.limits, Limits), (self.privacy, Privacy), (self.evaluation, Evaluation)):
            if not isinstance(own, kind):
                raise ConfigError(f"{kind.__name__.lower()} is {own!r}; expected {kind.__name__}(...), or leave it out")
        if self.averaging.robust and not self.transfer.shared:
            raise ConfigError("robust: clients share no parameters, so none are averaged; expected robust=None")
        if self.privacy.clip and self.limits.norm_bound:
            raise ConfigError(
                "privacy: with clip a longer change is shortened, as a refusal would show who sent it; expected "
                "limits.norm_bound=0 (server.norm-bound)"
            )
        if self.privacy.noise and self.evaluation.moments_merge == "robust":
            raise ConfigError(
                "privacy: with noise each client's moments are shortened already, and a median would let one client "
                "move what others count for; expected evaluation.moments_merge='auto' (evaluate.moments-merge)"
            )


def build_chain(options: Options, spent: Spent) -> Chain:
    """Return the chain of a run: the stages that the options name, in their order, around the mean."""
    privacy, rule = options.privacy, options.averaging.labels
    stages = (
        Untrained(),
        Noise(privacy, spent) if privacy.noise else Clip(privacy.clip) if privacy.clip else None,
        {"sent": None, "inferred": TrainedRows(), "none": AllRows()}[rule],
        *options.averaging.stages,
        Compress(options.transfer.upload),  # the last one: nearest to the wire
    )
    return Chain(
        [stage for stage in stages if stage is not None],
        options.averaging.link,
        extra_rows=options.averaging.fidelity.extra_rows == "fixed",
        largest=LARGEST_ENTRY,
        norm_bound=options.limits.norm_bound,
    )
