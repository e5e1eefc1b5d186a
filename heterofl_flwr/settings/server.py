"""The settings of what is exchanged: the server's part, what is kept private, and FedH2L."""

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from heterofl_flwr.core.counting_mean import Weights
from heterofl_flwr.core.robust import Few, Robust, RobustMean
from heterofl_flwr.core.slice_rule import SliceRule
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.nodes import Levels
from heterofl_flwr.federation.privacy import Privacy
from heterofl_flwr.federation.server_optimizer import Adagrad, Adam, Momentum, ServerOptimizer, Yogi
from heterofl_flwr.settings import kinds
from heterofl_flwr.settings.kinds import AUTO, Setting
from heterofl_flwr.training.distill import Direction, DistillOptions, Projection

ETA = MappingProxyType(
    {
        "momentum": Momentum().server_learning_rate,
        "adam": Adam().eta,
        "yogi": Yogi().eta,
        "adagrad": Adagrad().eta,
    }
)
"""What ``server.eta=auto`` stands for, by ``server.optimizer``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the server sends, and what it does beyond averaging."""

    strategy: Annotated[
        Literal["heterofl", "fedh2l", "hybrid"],
        Setting(
            "heterofl",
            kinds.choice("heterofl", "fedh2l", "hybrid"),
            "what clients exchange: parameters (heterofl, with the settings below also FedAvg and its kin), posteriors "
            "(fedh2l), or parameters within the families of distill.models and posteriors between them (hybrid)",
        ),
    ]
    choose: Annotated[
        SliceRule,
        Setting(
            "prefix",
            kinds.choice(*get_args(SliceRule)),
            "which slices clients get: prefix (HeteroFL), rolling (FedRolex: moves on by one each round), "
            "random-level or random-client (drawn each round for each rate, or for each client)",
        ),
    ]
    shared: Annotated[
        tuple[str, ...],
        Setting(
            "*",
            kinds.patterns("patterns of parameters such as 'hidden.*,output.bias', or '' for none"),
            "what travels and is averaged; all else stays with its client, which then has a model of its own",
        ),
    ]
    weights: Annotated[
        Weights,
        Setting(
            "equal",
            kinds.choice(*get_args(Weights)),
            "what a client counts in the mean: once (HeteroFL) or by its examples (FedAvg)",
        ),
    ]
    optimizer: Annotated[
        Literal["none", "momentum", "adam", "yogi", "adagrad"],
        Setting(
            AUTO,
            kinds.choice("none", *ETA),
            "what makes a step of what the mean changes, as Flower's FedAvgM, FedAdam, FedYogi and FedAdagrad do; "
            "entries that nobody held keep still; auto: momentum where server.momentum is above 0, else none",
        ),
    ]
    eta: Annotated[
        float,
        Setting(
            AUTO,
            kinds.number(above=0),
            "learning rate of the server optimiser; auto: Flower's, 1 of momentum, 0.01 of yogi, 0.1 of adam and "
            "adagrad",
        ),
    ]
    momentum: Annotated[float, Setting(0.0, kinds.decay(), "velocity that momentum keeps from round to round")]
    beta_1: Annotated[float, Setting(0.9, kinds.decay(), "first moment that adam and yogi keep from round to round")]
    beta_2: Annotated[float, Setting(0.99, kinds.decay(), "second moment that adam and yogi keep from round to round")]
    tau: Annotated[
        float,
        Setting(
            1e-3,
            kinds.number(above=0),
            "what adam, yogi and adagrad add to the root of the second moment: the larger, the less steps adapt",
        ),
    ]
    robust: Annotated[
        Literal["none", RobustMean],
        Setting(
            "none",
            kinds.choice("none", *get_args(RobustMean)),
            "what replaces the mean of an entry's holders, so that a hostile minority cannot move it far: trimmed (a "
            "trimmed mean), median or clip; goes with server.weights=equal, and not with privacy.noise",
        ),
    ]
    robust_trim: Annotated[
        float,
        Setting(
            Robust().trim,
            kinds.number(least=0, most=0.49),
            "share of an entry's holders that trimmed drops at each end; at least one",
        ),
    ]
    robust_few: Annotated[
        Few,
        Setting(
            Robust().few,
            kinds.choice(*get_args(Few)),
            "entries that one or two clients hold: a shorter step, or keep the old value",
        ),
    ]
    norm_bound: Annotated[
        float,
        Setting(
            0.0,
            kinds.number(least=0),
            "a reply that changes its slice by more than this, in the L2 norm, is refused; 0 for no bound",
        ),
    ]
    max_examples: Annotated[
        int,
        Setting(
            10_000_000,
            kinds.integer(1, 1_000_000_000),
            "a reply that counts more examples is refused; with server.weights=examples, set it near "
            "the largest client's",
        ),
    ]
    max_examples_ratio: Annotated[
        float,
        Setting(
            AUTO,
            kinds.number(least=0),
            "in means of metrics a client counts at most so many times the examples of the median client; 0 for no "
            "bound; auto: 10, or 0 where data.split deals parts of unequal size (dirichlet)",
        ),
    ]
    max_refusals: Annotated[
        int,
        Setting(0, kinds.integer(0), "refused replies in a row after which a client is not drawn any more; 0: never"),
    ]
    levels: Annotated[
        tuple[tuple[str, str], ...],
        Setting(
            "",
            kinds.levels(),
            "levels of nodes by registered name or node id, such as 'phone=c,camera=a', whatever the nodes say",
        ),
    ]
    largest_level: Annotated[
        str, Setting("a", kinds.level(), "the largest level of nodes that are not in server.levels, whatever they say")
    ]

    def server_optimizer(self) -> ServerOptimizer | None:
        """Return what makes a step of what the mean changes; None for the mean as it is."""
        if self.optimizer == "none":
            return None
        if self.optimizer == "momentum":
            return Momentum(server_learning_rate=self.eta, server_momentum=self.momentum)
        if self.optimizer == "adagrad":
            return Adagrad(eta=self.eta, tau=self.tau)
        kind = Adam if self.optimizer == "adam" else Yogi
        return kind(eta=self.eta, beta_1=self.beta_1, beta_2=self.beta_2, tau=self.tau)

    def robust_mean(self) -> Robust | None:
        """Return what replaces the counting mean; None for nothing."""
        return None if self.robust == "none" else Robust(mean=self.robust, trim=self.robust_trim, few=self.robust_few)

    def limits(self) -> Limits:
        """Return what a client's answer may be at most."""
        return Limits(
            norm_bound=self.norm_bound,
            examples=self.max_examples,
            examples_ratio=self.max_examples_ratio,
            refusals=self.max_refusals,
            levels=Levels(table=dict(self.levels), others=self.largest_level),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """What the model may give away of a single client."""

    clip: Annotated[
        float,
        Setting(
            0.0, kinds.number(least=0), "L2 norm to which a client's change of its slice is shortened; 0: no clipping"
        ),
    ]
    noise: Annotated[
        float,
        Setting(
            0.0,
            kinds.number(least=0),
            "deviation of the noise on the clients' sum, in multiples of privacy.clip; 0: none",
        ),
    ]
    delta: Annotated[float, Setting(1e-5, kinds.number(above=0, most=0.5), "at which the run's record states epsilon")]
    moments_clip: Annotated[
        float,
        Setting(
            10.0,
            kinds.number(above=0),
            "L2 norm to which a client's batch norm moments are shortened where there is noise",
        ),
    ]

    def to_core(self) -> Privacy:
        """Return what protects clients."""
        return Privacy(**{one.name: getattr(self, one.name) for one in fields(Privacy)})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """How clients learn from one another with ``server.strategy=fedh2l`` or ``hybrid``."""

    models: Annotated[
        tuple[str, ...],
        Setting(
            "",
            kinds.words("different names such as 'cnn,mlp', each one of ours or 'module:name'; '' for model.name"),
            "the architectures, which clients have in turns",
        ),
    ]
    seed_size: Annotated[int, Setting(1000, kinds.integer(1), "examples of the seed set, which every client has")]
    seed_batch: Annotated[int, Setting(100, kinds.integer(1), "how many of them a round uses, drawn anew")]
    steps: Annotated[int, Setting(10, kinds.integer(0), "seed steps of a client in a round")]
    temperature: Annotated[float, Setting(1.0, kinds.number(above=0), "by what logits are divided before softmax")]
    direction: Annotated[
        Direction,
        Setting(
            "forward",
            kinds.choice(*get_args(Direction)),
            "divergence that is learnt from: KL(peer, own) or, in reverse, KL(own, peer)",
        ),
    ]
    weight: Annotated[float, Setting(1.0, kinds.number(least=0), "weight of the mean divergence")]
    labels: Annotated[bool, Setting(True, kinds.flag(), "the labels of the seed set count too")]
    projection: Annotated[
        Projection,
        Setting(
            "gem",
            kinds.choice(*get_args(Projection)),
            "what becomes of the gradients of own and of seed data where they are at odds",
        ),
    ]

    def to_core(self) -> DistillOptions:
        """Return how a client learns from its peers."""
        return DistillOptions(**{one.name: getattr(self, one.name) for one in fields(DistillOptions)})
