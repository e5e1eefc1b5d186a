"""The server's options in groups, and the chain of stages that they switch on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, InstanceOf, Strict

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, Flag, Natural, NotNegative, Positive, Share, check, group, specs
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.core.exchanged import ALL
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.label_rows import LabelRule
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.robust import Robust, RobustMean
from heterofl_flwr.core.slice_rules import NESTED_RULES, SliceRule
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.sampling import Participation
from heterofl_flwr.stages.asynchronous import Asynchronous, Buffered
from heterofl_flwr.stages.chain import Chain
from heterofl_flwr.stages.chain_checks import Kind
from heterofl_flwr.stages.client_stage import FULL_PRECISION
from heterofl_flwr.stages.clip import Clip, Noise
from heterofl_flwr.stages.compress import Compress, Upload
from heterofl_flwr.stages.level_parameters import LevelParameters, Untrained
from heterofl_flwr.stages.privacy_accountant import Privacy, Spent
from heterofl_flwr.stages.server_stage import ServerStage, stage_name

Assignment = Literal["fix", "dynamic"]

Schedule = Callable[[int], float]
"""Function from a round, counted from 1, to its learning rate."""

OptionalLevel = Annotated[
    str | Annotated[float, Strict()],
    check(lambda level: [level == "" or rate_of(level)]),
    "a level such as 'a', a rate such as '0.5', or ''",
]


@group
class Slicing:
    """Options of slicing: the part of the global model that each client trains."""

    assignment: Assignment = "fix"
    """levels stay with their clients (fix) or are drawn anew each round (dynamic)"""
    global_rate: OptionalLevel = ""
    """level or rate of the global model; '' for the largest rate of the mix. If it is larger than the rate of every
    client (FedRolex), the slice rule must move slices
    """
    slice_rule: SliceRule = "prefix"
    """slices of clients. prefix: the first channels (HeteroFL). important: the first channels after all channels are
    sorted by norm (structured FIARSE). rolling: a window of channels that moves in each round (FedRolex). random-level:
    channels drawn in each round for each rate. random-client: channels drawn in each round for each client
    """
    roll_by: Count = 1
    """entries by which rolling slices move in each round"""
    growth: Natural = 0
    """rounds from one increase of levels to the next (FedGMR, structured): all clients begin at the smallest level of
    the mix; at each increase a client gets the next larger level, until it has its assigned level. 0: clients train at
    their assigned level from the first round on
    """
    rank_every: Count = 5
    """rounds from one sorting of channels to the next, for the slice rule important"""
    rank_margin: NotNegative = 0.1
    """fraction by which the norm of a channel outside a slice must exceed the norm of a channel inside it before the
    two change places; for the slice rule important
    """
    shared: Annotated[Sequence[str], "patterns of parameters, as ['hidden.*']"] = ALL
    """parameters that are sent and averaged, as fnmatch patterns. All other parameters stay with their client, which
    then has a model of its own (LG-FedAvg; Standalone if no parameters are sent)
    """
    by_level: Annotated[Sequence[str], "patterns of parameters, as ['*.norm.*']"] = ()
    """parameters that have separate values for each level, averaged over the clients of that level only (NeFL's
    inconsistent parameters), as fnmatch patterns
    """

    def __post_init__(self) -> None:
        if self.by_level and (self.slice_rule != "prefix" or tuple(self.shared) != ALL):
            raise ConfigError(
                f"by_level is {list(self.by_level)}, expected slice_rule='prefix' and all parameters shared with it"
            )
        for name, rule in {"roll_by": "rolling", "rank_every": "important", "rank_margin": "important"}.items():
            if (value := getattr(self, name)) != specs(type(self))[name].default and self.slice_rule != rule:
                raise ConfigError(f"{name} is {value}, expected slice_rule={rule!r} with it")


@group
class Training:
    """Training options that the server sends to clients."""

    learning_rate: Annotated[Positive | Schedule | None, "a number above 0, or a function of the round"] = None
    """learning rate of the first round, or a function from a round to its learning rate; None: the clients choose it"""
    milestones: Annotated[Sequence[Count], "rounds, as [150, 250]"] = ()
    """rounds; the learning rate is divided by 10 after each of them"""
    lr_decay: Share = 1.0
    """factor by which the learning rate is multiplied after each round"""
    proximal_mu: NotNegative = 0.0
    """weight of FedProx's proximal term; 0 for none"""
    upload: Upload = "float32"
    """form of replies: parameters (float32), or their changes in two bytes (float16) or one byte (int8) each"""

    def __post_init__(self) -> None:
        if (self.milestones or self.lr_decay != 1) and not isinstance(self.learning_rate, int | float):
            raise ConfigError("milestones and lr_decay change a number; expected learning_rate to be a number")

    @property
    def schedule(self) -> Schedule | None:
        """Function from the round to the learning rate; None if clients choose it."""
        initial = self.learning_rate
        if initial is None or callable(initial):
            return initial

        def decayed(server_round: int) -> float:
            passed = sum(milestone < server_round for milestone in self.milestones)
            return initial * 0.1**passed * self.lr_decay ** (server_round - 1)

        return decayed


@group
class Averaging:
    """Options of the mean of replies."""

    weights: Weights = "equal"
    """weight of a client in the mean. equal: 1, as in HeteroFL. examples: its number of examples, as in FedAvg"""
    labels: LabelRule = "sent"
    """rows of a reply's classifier that are averaged. sent: the rows of the classes that the reply lists as labels.
    none: all rows; labels are ignored
    """
    label_rows: Annotated[Sequence[str] | None, "names of parameters"] = None
    """parameters with one row for each class; None: the parameters that find_label_rows finds in the classifier"""
    fidelity: Annotated[InstanceOf[Fidelity], "Fidelity(...)"] = Fidelity()
    """errors of the authors' code, each kept (paper) or corrected (fixed). The strategy uses only extra_rows and
    moments
    """
    robust: Annotated[InstanceOf[Robust] | None, "Robust(...)"] = None
    """trimmed mean or median, which a hostile minority cannot move far. Not allowed with weights='examples' or noise"""
    aggregator: Annotated[OpenAggregator, "a function from a state to an Aggregator"] = CountingMean
    """function from a global state to the Aggregator of a round: CountingMean, ProductMean for LoRA adapters of unequal
    rank, or your own. With robust or noise, leave it at CountingMean
    """

    def __post_init__(self) -> None:
        if self.robust and self.aggregator is not CountingMean:
            raise ConfigError("robust and aggregator both replace the counting mean; expected one of them")

    @property
    def kind(self) -> Kind:
        """Kind of the mean: ``counting``, ``robust`` or ``other``."""
        return "robust" if self.robust else "counting" if self.aggregator is CountingMean else "other"


@group
class Evaluation:
    """Options of evaluation."""

    every: Natural = 1
    """rounds from one evaluation to the next; the last round also ends with an evaluation. 0: no evaluation"""
    nodes: Literal["capable", "all"] = "capable"
    """model that a client evaluates. capable: a client with a known largest rate (by its report or the server's limits)
    evaluates the largest model of the mix up to this rate; its metrics count for the level of this model. Every other
    client evaluates the full model. all: every client evaluates the full model (paper)
    """
    levels: Annotated[Flag | Literal["last"], "true, false or 'last'"] = False
    """evaluate each level's model too. true: in each evaluation. last: only after the last round. false: never"""
    static_norm: Flag = Field(default=True, exclude=True)
    """before an evaluation, query the clients for static batch norm moments if the model has batch norm"""

    def due(self, server_round: int, num_rounds: int) -> bool:
        """Whether this round ends with an evaluation."""
        return self.every > 0 and (server_round % self.every == 0 or server_round >= num_rounds > 0)

    def levels_due(self, server_round: int, num_rounds: int) -> bool:
        """Whether this round also evaluates the model of each level."""
        return server_round >= num_rounds > 0 if self.levels == "last" else self.levels


@group
class Options:
    """All options of the server; raises ``ConfigError`` if they contradict one another."""

    sampling: Participation = Participation()
    slicing: Annotated[InstanceOf[Slicing], "Slicing(...), or leave it out"] = Slicing()
    training: Annotated[InstanceOf[Training], "Training(...), or leave it out"] = Training()
    averaging: Annotated[InstanceOf[Averaging], "Averaging(...), or leave it out"] = Averaging()
    stages: Annotated[Sequence[ServerStage], "a list of stages, such as [Adam()]"] = ()
    limits: Annotated[InstanceOf[Limits], "Limits(...), or leave it out"] = Limits()
    privacy: Annotated[InstanceOf[Privacy], "Privacy(...), or leave it out"] = Privacy()
    evaluation: Annotated[InstanceOf[Evaluation], "Evaluation(...), or leave it out"] = Evaluation()
    asynchronous: Annotated[InstanceOf[Buffered], "Buffered(...), or leave it out"] = Buffered()

    def __post_init__(self) -> None:
        needs_round = self.averaging.kind != "counting" or self.slicing.slice_rule != "prefix"
        if self.asynchronous.size and (needs_round or self.sampling.spare):
            raise ConfigError(
                "asynchronous: robust means, other aggregators, slices that move and spare clients need rounds that "
                "wait; expected robust=None, aggregator=CountingMean, slice_rule='prefix' and spare=0"
            )
        least = self.sampling.min_replies
        if self.asynchronous.size and isinstance(least, int) and least > self.asynchronous.size:
            raise ConfigError(
                f"min_replies is {least}, expected asynchronous.size, {self.asynchronous.size}, or fewer: a step ends "
                f"with so many replies"
            )
        moves = self.slicing.slice_rule not in NESTED_RULES
        if moves and not getattr(self.averaging.aggregator, "by_entry", True):
            raise ConfigError(
                f"slice_rule is {self.slicing.slice_rule!r}, but an entry of this aggregator's mean depends on other "
                f"entries of the replies (by_entry = False), which slices that move may lack; expected "
                f"slice_rule='prefix' or aggregator=CountingMean (server.aggregator=counting-mean)"
            )
        if not self.slicing.shared and (self.training.proximal_mu or self.stages):
            raise ConfigError(
                f"shared is {self.slicing.shared!r}, so there are no parameters for FedProx or stages to work on: "
                f"expected proximal_mu=0 and no stages with it"
            )
        if self.slicing.by_level:
            self._check_by_level()
        if self.privacy.clip and self.limits.norm_bound:
            raise ConfigError(
                "privacy: clip shortens a change that is too long; norm_bound would refuse it, and show who sent it; "
                "expected limits.norm_bound=0 (server.norm-bound)"
            )

    def _check_by_level(self) -> None:
        faults = {
            "privacy.clip": self.privacy.clip,
            "limits.norm_bound": self.limits.norm_bound,
            "training.upload": self.training.upload != FULL_PRECISION,
        } | {
            stage_name(stage): stage.keeps_client_state or type(stage).evaluated is not ServerStage.evaluated
            for stage in self.stages
        }
        if wrong := [name for name, is_set in faults.items() if is_set]:
            raise ConfigError(
                f"by_level: {', '.join(wrong)} would compare a level's parameters with those of the global model; "
                f"expected by_level=[], or a run without these"
            )


def build_chain(options: Options, spent: Spent, *, all_is_trained: bool, asynchronous: Asynchronous | None) -> Chain:
    """Return the chain: the stages that the options switch on, then the mean of replies.

    ``all_is_trained`` is False if clients hold parameters that they do not train.
    """
    privacy, upload, averaging = options.privacy, options.training.upload, options.averaging
    open_mean, kind = averaging.aggregator, averaging.kind
    if averaging.robust:
        open_mean = partial(RobustMean, robust=averaging.robust)
    if asynchronous is not None:
        open_mean, kind = asynchronous.open_mean, "asynchronous"
    stages = (
        asynchronous,
        None if all_is_trained else Untrained(),
        Noise(privacy, spent) if privacy.noise else Clip(privacy.clip) if privacy.clip else None,
        *options.stages,
        LevelParameters(options.slicing.by_level) if options.slicing.by_level else None,
        None if upload == FULL_PRECISION else Compress(upload),  # the last stage processes a reply first
    )
    return Chain(
        [stage for stage in stages if stage is not None],
        open_mean,
        kind,
        weights=averaging.weights,
        norm_bound=options.limits.norm_bound,
    )
