"""Definitions of all settings of a run.

The key of a setting is group, dot and field in kebab-case: the field ``batch_size`` of ``train`` is
``train.batch-size``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, Strict

from heterofl_flwr.adapters.averaging import ProductMean
from heterofl_flwr.common.options import (
    Count,
    Flag,
    Interval,
    Natural,
    NotNegative,
    Positive,
    Share,
    ShareOrNone,
    group,
    same,
)
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.label_rows import LabelRule
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.robust import Few, Robust, RobustKind
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.data.known import SOURCES
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.options import Assignment, Averaging, Evaluation, OptionalLevel, Slicing, Training
from heterofl_flwr.federation.sampling import Participation
from heterofl_flwr.nn.inner_widths import InnerWidths
from heterofl_flwr.settings import value_types
from heterofl_flwr.settings.value_types import Group
from heterofl_flwr.stages.asynchronous import Buffered
from heterofl_flwr.stages.compress import Upload
from heterofl_flwr.stages.privacy_accountant import Privacy
from heterofl_flwr.training.device import Precision
from heterofl_flwr.training.exit_losses import TrainedExits
from heterofl_flwr.training.fedh2l import DistillOptions
from heterofl_flwr.training.options import TrainOptions

AGGREGATORS: Mapping[str, OpenAggregator] = MappingProxyType({"counting-mean": CountingMean, "product": ProductMean})
"""Aggregator by the value of ``server.aggregator``."""


class DataSettings(Group):
    """Data of the clients."""

    name: value_types.Text = Field(
        default="digits",
        description=f"data set: {', '.join(SOURCES)}, 'user/set' of the Hugging Face hub, folder or 'module:function'",
    )
    root: value_types.Text = ""
    """folder with data sets laid out as on the Hugging Face hub; '': the folder $HETEROFL_DATA if set, else the hub"""
    label: value_types.Text = ""
    """name of the column with the classes, such as coarse_label of cifar100; '': the column is inferred"""
    split: value_types.SplitName = "iid"
    """how the data are split among the clients; natural: client i has the examples of the i-th owner"""


class ModelSettings(Group):
    """The global model."""

    name: value_types.Text
    """cnn, mlp, lenet, preresnet18, preresnet18-later, preresnet50, transformer, or a function from a rate to a model,
    'module:function'
    """
    hidden: value_types.Widths
    """widths of an image model's stages at rate 1"""
    norm: Literal["sbn", "in", "gn", "ln", "none"]
    """norm of an image model: static batch (sbn), instance (in), group with four groups (gn), layer (ln), or none"""
    scaler: bool = True
    """in training, divide a smaller model's activations by its rate (Scaler); with norm=none, smaller models may learn
    nothing with the Scaler. mlp and lenet have no Scaler
    """
    shrink: value_types.Shrink = "width"
    """parts that smaller models leave out: channels (width), the final stages or Transformer layers (depth), or both;
    with depth or both, an image model has an exit after each stage
    """
    ensemble: bool = False
    """evaluate the mean of all exits' logits (DepthFL) instead of the deepest exit"""


@group
class TrainSettings(TrainOptions):
    """Training of a client in a round."""

    clip: NotNegative = same(TrainOptions, "clip")
    milestones: value_types.Rounds = same(Training, "milestones")
    lr_decay: Share = same(Training, "lr_decay")
    distill: InnerWidths = "none"
    """smaller widths inside a client's model, trained in each step with the posterior of the client's model as target:
    none, all, sandwich (the smallest and a random other width), or drawn (at most one random width: FjORD). ordered:
    each step trains only one random width, which may be the client's full width, on labels (FjORD without distillation)
    """
    exits: TrainedExits = "last"
    """exits of a client's model that are trained: only the deepest (last), all with distillation between them (mutual:
    DepthFL), or all with distillation from the deepest (deepest: ScaleFL)
    """
    upload: Upload = same(Training, "upload")
    labels: LabelRule = same(Averaging, "labels")


@group
class ServerSettings(Limits):
    """The server: slices, means and stages."""

    strategy: Literal["heterofl", "fedh2l"] = "heterofl"
    """tensors that clients exchange. heterofl: parameters, as in HeteroFL and, with further settings, FedAvg and
    other methods. fedh2l: posteriors
    """
    slice_rule: SliceRule = same(Slicing, "slice_rule")
    roll_by: Count = same(Slicing, "roll_by")
    growth: Natural = same(Slicing, "growth")
    rank_every: Count = same(Slicing, "rank_every")
    rank_margin: NotNegative = same(Slicing, "rank_margin")
    shared: value_types.Patterns = same(Slicing, "shared")
    by_level: value_types.Patterns = same(Slicing, "by_level")
    weights: Weights = same(Averaging, "weights")
    stages: value_types.StagesText = ""
    """further stages around the mean, with their arguments: server optimisers (momentum, adam, yogi and adagrad, as in
    Flower's FedAvgM, FedAdam, FedYogi and FedAdagrad; nesterov), feddyn, scaffold, moving-average; or secure-sum, with
    which the server sees only sums of changes
    """
    robust: Literal["none", RobustKind] = "none"
    """robust mean of each parameter entry over its holders, the clients whose slices contain it, against a hostile
    minority: trimmed (a trimmed mean) or median; needs server.weights=equal, and excludes privacy.noise
    """
    robust_trim: Annotated[float, Strict(), Field(ge=0, le=0.49)] = Robust().trim
    """fraction of an entry's holders to drop at each end with robust=trimmed; rounded down, but at least one holder"""
    robust_few: Few = Robust().few
    """value of an entry with one or two holders: the holders' plain mean (mean), or the old value (keep)"""
    aggregator: Literal["counting-mean", "product"] = "counting-mean"
    """mean of the replies: counting-mean, or product (FlexLoRA) for LoRA adapters of unequal rank"""

    def build_robust_mean(self) -> Robust | None:
        """Return the options of the robust mean; None with ``robust="none"``."""
        return None if self.robust == "none" else Robust(mean=self.robust, trim=self.robust_trim, few=self.robust_few)


@group
class DistillSettings(DistillOptions):
    """Distillation among peers (FedH2L), and from a model to its exits and inner widths."""

    models: value_types.Architectures = ()
    """architectures of the clients in FedH2L, assigned in turn, at their default widths; model.name and model.hidden
    must be auto then
    """
    label_share: ShareOrNone = 0.0
    """weight of the labels in the loss of inner widths (train.distill); the
    posterior of the client's model has the remaining weight
    """
    ramp: ShareOrNone = 0.0
    """fraction of the rounds, at the start, in which the distillation between exits is off (train.exits=deepest) or
    grows to its full weight (train.exits=mutual)
    """


@group
class EvaluateSettings(Evaluation):
    """Evaluation of the model."""

    central: Flag = True
    """evaluate the global model on the server, on the test set of data.name (with a natural split, on the part of the
    clients). Where clients have models of their own (server.shared, server.strategy=fedh2l), each client evaluates its
    model on this set, unless it has a data-path
    """
    moments_batch_size: Natural = 0
    """batch size for measuring static batch norm moments; 0: train.batch-size as in the paper's code, or 100 with
    fidelity=fixed
    """
    metric: value_types.Text = ""
    """your function that returns further metrics by name, 'module:function'"""


class EngineSettings(Group):
    """Engine, device and messages."""

    name: Literal["auto", "plain", "cohort", "seats"] = "auto"
    """how clients train: plain (one by one, the same bit for bit on any grid), cohort (clients of one rate together),
    seats (clients of any rates side by side on a GPU); auto: plain or cohort, whichever is likely faster
    """
    cohort: Natural = 0
    """maximum number of clients that train together, of one rate or (seats) of any rates; 0: 5 on a CPU, 50 on CUDA"""
    device: value_types.Text = "auto"
    """cpu, mps, cuda or cuda:1; auto: a GPU if the client has one"""
    precision: Precision = "tf32"
    """arithmetic of clients: float32, tf32 (on a GPU, matrix products round their inputs to ten bits; elsewhere
    float32), bf16 (training with bfloat16 autocast, evaluation in tf32)
    """
    window: Natural = 0
    """maximum number of unanswered messages, to bound the server's memory; 0: no limit. By default, 'heterofl run' and
    'heterofl sweep' use 64. Without effect with sample.spare or asynchronous.size
    """
    timeout: Positive = 3600.0
    """seconds that clients have in a round, including evaluation; later replies are ignored"""


class DevicesSettings(Group):
    """Simulated devices: time, energy and failures."""

    profile: value_types.Profile = ""
    """device profiles by level: edge (bundled; its numbers are assumptions), or 'module:function', your function that
    returns a mapping from levels to DeviceProfile
    """
    deadline: NotNegative = 0.0
    """simulated seconds that a round waits for replies; 0 for no limit"""


class RunSettings(Group):
    """Files and callbacks of a run."""

    dir: value_types.Text = ""
    """folder for settings, history, checkpoints and models; '': a new folder below runs/"""
    resume: bool = False
    """resume from the newest checkpoint in run.dir"""
    checkpoint_every: Interval = 1
    """rounds between checkpoints, or seconds ('30s'); the final round always has a checkpoint"""
    metric: value_types.Text = ""
    """metric, such as local-accuracy, that an optimising sweeper maximises or minimises; '': the first of perplexity,
    accuracy and loss that the run measures, if possible of the global model
    """
    callbacks: value_types.Callbacks = ("tensorboard",)
    """callbacks that get the record of each round"""
    metrics_address: value_types.Address = ""
    """address at which the server serves the run's metrics and health over HTTP, such as 127.0.0.1:9090; '': none"""
    log: Literal["text", "json"] = "text"
    """format of the ServerApp's log lines under 'flwr run': text, or one JSON object a line"""


class Settings(Group):
    """All settings of a run, parsed and validated."""

    mix: value_types.MixText = Mix.parse("a1-b1-c1-d1-e1")
    """levels of the clients and their proportions, such as a1-e2; in a1-e2-x3, half of the clients never train"""
    global_rate: OptionalLevel = same(Slicing, "global_rate")
    assignment: Assignment = same(Slicing, "assignment")
    num_rounds: Count
    """number of rounds"""
    seed: Natural = 0
    """random seed of all draws but the secret ones of privacy.noise and secure-sum"""
    fidelity: Variant = "paper"
    """errors of the authors' code: reproduced, as in the published numbers (paper), or corrected (fixed)"""
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    sample: Participation
    server: ServerSettings
    asynchronous: Buffered
    privacy: Privacy
    distill: DistillSettings
    evaluate: EvaluateSettings
    engine: EngineSettings
    devices: DevicesSettings
    run: RunSettings
