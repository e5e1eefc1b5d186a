"""The settings of how a run is judged, what runs it, and what it leaves behind."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from heterofl_flwr.federation.evaluation import MomentsMerge
from heterofl_flwr.grids.devices import BUNDLED
from heterofl_flwr.settings import kinds
from heterofl_flwr.settings.kinds import AUTO, Setting
from heterofl_flwr.training.train import ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """How the model is judged."""

    every: Annotated[
        int,
        Setting(AUTO, kinds.integer(0), "rounds from one evaluation to the next; the last round has one; 0 for none"),
    ]
    nodes: Annotated[
        Literal["all", "capable"],
        Setting(
            "all",
            kinds.choice("all", "capable"),
            "who runs the full model: all nodes, as in the paper, or those that can hold it",
        ),
    ]
    levels: Annotated[
        bool | Literal["last"],
        Setting(
            AUTO,
            kinds.flag_or("last"),
            "evaluate each level's own model too: each time, never, or after the last round",
        ),
    ]
    central: Annotated[
        bool, Setting(True, kinds.flag(), "the server evaluates the global model on the whole test set of data.name")
    ]
    moments_batch_size: Annotated[
        int,
        Setting(
            0,
            kinds.integer(0),
            "samples in a batch whose moments are measured for static batch norm; 0: as train.batch-size, which the "
            "paper's code takes, or 100 with fidelity.moments=fixed",
        ),
    ]
    moments_merge: Annotated[
        MomentsMerge,
        Setting(
            "auto",
            kinds.choice(*get_args(MomentsMerge)),
            "how moments of clients are joined: mean (as in the paper) or robust (outliers are clipped to the median); "
            "auto: robust in a deployment, but with privacy.noise, and mean in simulations",
        ),
    ]
    metric: Annotated[str, Setting("", kinds.reference(), "a further metric of your own, 'module:function'")]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What runs the clients."""

    name: Annotated[
        str,
        Setting(
            "auto",
            kinds.choice("auto", *ENGINES),
            "how clients train: plain (one by one, the same bit for bit on any grid), graph (CUDA graphs), cohort "
            "(clients of one rate together); auto takes what is fastest",
        ),
    ]
    cohort: Annotated[
        int,
        Setting(0, kinds.integer(0), "clients of one rate that train together at most; 0: 5 on a CPU, 50 on a GPU"),
    ]
    device: Annotated[
        str,
        Setting(
            "auto",
            kinds.text("'auto', 'cpu', 'mps', 'cuda' or 'cuda:1'", r"auto|cpu|mps|cuda(?::\d+)?"),
            "auto: a GPU where a client has one",
        ),
    ]
    window: Annotated[
        int,
        Setting(
            0,
            kinds.integer(0),
            "messages under way at once, which bounds the server's memory; 0 for all ('heterofl run' then takes 64)",
        ),
    ]
    timeout: Annotated[
        float,
        Setting(3600.0, kinds.number(above=0), "seconds that clients have for an answer; one that is later is ignored"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesSettings:
    """What the clients' devices can do, to simulate time, energy and what goes wrong."""

    profile: Annotated[
        str,
        Setting(
            "",
            kinds.text(
                f"one of {', '.join(BUNDLED)}, 'module:function', or '' for none",
                rf"(?:{'|'.join(BUNDLED)}|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)?",
            ),
            "the profile of each level: edge (bundled; its numbers are assumptions), or 'module:function', which "
            "returns a mapping from levels to DeviceProfile",
        ),
    ]
    deadline: Annotated[
        float, Setting(0.0, kinds.number(least=0), "simulated seconds that a round waits for replies; 0 for no limit")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run leaves behind."""

    dir: Annotated[
        str, Setting("", kinds.path(), "folder for settings, history, checkpoints and models; 'heterofl run' makes one")
    ]
    resume: Annotated[bool, Setting(False, kinds.flag(), "go on from the last checkpoint in run.dir")]
    checkpoint_every: Annotated[
        int, Setting(1, kinds.integer(1), "rounds from one checkpoint to the next; the last round has one")
    ]
    metric: Annotated[
        str,
        Setting(
            "",
            kinds.text("a metric of evaluation such as 'local-accuracy', or '' for the global model's", r"[\w/-]*"),
            "by what the best round is chosen",
        ),
    ]
    patience: Annotated[
        int, Setting(0, kinds.integer(0), "evaluations in a row without a new best after which the run stops; 0: never")
    ]
    callbacks: Annotated[
        tuple[str, ...],
        Setting(
            "tensorboard",
            kinds.words("different names such as 'tensorboard,wandb', each one of ours or 'module:name'; '' for none"),
            "what is told of each round",
        ),
    ]
