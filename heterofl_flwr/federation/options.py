"""The server's options in groups, each checked in one place, and the chain of stages that they describe.

``Sampling``, ``Evaluation`` and ``Privacy`` are groups too; they lie beside the code that uses them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import InstanceOf

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, NotNegative, group
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.moving_slices import SliceRule
from heterofl_flwr.core.reply_checks import LARGEST_ENTRY, LabelRule
from heterofl_flwr.core.robust import Robust, RobustMean
from heterofl_flwr.core.slice_plan import ALL
from heterofl_flwr.federation.admission import Limits
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.sampling import Sampling
from heterofl_flwr.stages.asynchronous import Asynchronous, Buffered
from heterofl_flwr.stages.chain import Chain, Kind
from heterofl_flwr.stages.client_stage import FULL_PRECISION
from heterofl_flwr.stages.clip import Clip
from heterofl_flwr.stages.compress import Compress, Upload
from heterofl_flwr.stages.noise import Noise
from heterofl_flwr.stages.privacy import Privacy, Spent
from heterofl_flwr.stages.server_stage import ServerStage
from heterofl_flwr.stages.untrained import Untrained

Assignment = Literal["fix", "dynamic"]

Schedule = Callable[[int], float]
"""From the round, counted from 1, to the learning rate."""


def multi_step(
    learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1, decay: float = 1.0
) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` after each milestone (Table 6).

    It multiplies it by ``decay`` after each round, too.
    """

    def rate(server_round: int) -> float:
        passed = sum(milestone < server_round for milestone in milestones)
        return learning_rate * factor**passed * decay ** (server_round - 1)

    return rate


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
    fidelity: Annotated[InstanceOf[Fidelity], "Fidelity(...)"] = Fidelity()
    robust: Annotated[InstanceOf[Robust] | None, "Robust(...)"] = None
    aggregator: Annotated[OpenAggregator, "what makes an Aggregator of a state, as CountingMean"] = CountingMean
    stages: Annotated[Sequence[ServerStage], "a list of stages"] = ()

    def __post_init__(self) -> None:
        if self.robust and self.aggregator is not CountingMean:
            raise ConfigError("robust and aggregator both replace the counting mean; expected one of them")

    @property
    def kind(self) -> Kind:
        """What the mean is, in words."""
        return "robust" if self.robust else "counting" if self.aggregator is CountingMean else "other"


@group
class Options:
    """All options of the server; here they are checked against one another."""

    sampling: Sampling = Sampling()
    transfer: Transfer = Transfer()
    averaging: Averaging = Averaging()
    limits: Annotated[InstanceOf[Limits], "Limits(...), or leave it out"] = Limits()
    privacy: Annotated[InstanceOf[Privacy], "Privacy(...), or leave it out"] = Privacy()
    evaluation: Annotated[InstanceOf[Evaluation], "Evaluation(...), or leave it out"] = Evaluation()
    asynchronous: Annotated[InstanceOf[Buffered], "Buffered(...), or leave it out"] = Buffered()

    def __post_init__(self) -> None:
        needs_round = self.averaging.kind != "counting" or self.transfer.slice_rule != "prefix"
        if self.asynchronous.size and (needs_round or self.sampling.spare):
            raise ConfigError(
                "asynchronous: robust means, other aggregators, slices that move and spare clients need rounds that "
                "wait; expected robust=None, aggregator=CountingMean, slice_rule='prefix' and spare=0"
            )
        if self.privacy.clip and self.limits.norm_bound:
            raise ConfigError(
                "privacy: with clip a longer change is shortened, as a refusal would show who sent it; expected "
                "limits.norm_bound=0 (server.norm-bound)"
            )


def build_chain(
    options: Options, spent: Spent, *, all_is_trained: bool, asynchronous: Asynchronous | None = None
) -> Chain:
    """Return the chain of a run: the stages that have something to do in it, in their order, around the mean."""
    privacy, upload, averaging = options.privacy, options.transfer.upload, options.averaging
    open_mean, kind = averaging.aggregator, averaging.kind
    if averaging.robust:
        open_mean = partial(RobustMean, robust=averaging.robust)
    if asynchronous is not None:
        open_mean, kind = asynchronous.open_mean, "asynchronous"
    stages = (
        asynchronous,
        None if all_is_trained else Untrained(),
        Noise(privacy, spent) if privacy.noise else Clip(privacy.clip) if privacy.clip else None,
        *averaging.stages,
        None if upload == FULL_PRECISION else Compress(upload),  # the last one: nearest to the wire
    )
    return Chain(
        [stage for stage in stages if stage is not None],
        open_mean,
        kind,
        weights=averaging.weights,
        extra_rows=averaging.fidelity.extra_rows == "fixed",
        largest=LARGEST_ENTRY,
        norm_bound=options.limits.norm_bound,
    )
