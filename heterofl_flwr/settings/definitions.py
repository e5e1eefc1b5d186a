"""Every setting of a run: the groups of options that strategies and clients have, and what only a run has.

A field's key in a run config is the name of its group and its own, in kebab-case: ``train.batch_size`` is
``train.batch-size``. The fields of ``Settings`` itself have no prefix.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

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
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.moving_slices import SliceRule
from heterofl_flwr.core.robust import Few, Robust, RobustKind
from heterofl_flwr.data.known import SOURCES
from heterofl_flwr.federation.admission import Limits
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.options import Assignment, Averaging, OptionalLevel, Slicing, Training
from heterofl_flwr.federation.sampling import Participation
from heterofl_flwr.nn.nested import InnerWidths
from heterofl_flwr.settings import value_types
from heterofl_flwr.settings.value_types import Group
from heterofl_flwr.stages.asynchronous import Buffered
from heterofl_flwr.stages.compress import Upload
from heterofl_flwr.stages.privacy_accountant import Privacy
from heterofl_flwr.training.device import Precision
from heterofl_flwr.training.distill import DistillOptions
from heterofl_flwr.training.joint_losses import TrainedExits
from heterofl_flwr.training.options import TrainOptions

AGGREGATORS: Mapping[str, OpenAggregator] = MappingProxyType({"counting-mean": CountingMean, "product": ProductMean})
"""By ``server.aggregator``."""


class DataSettings(Group):
    """Data of the clients."""

    name: value_types.Text = Field(
        default="digits",
        description=f"data set: {', '.join(SOURCES)}, 'user/set' of the Hugging Face hub, folder or 'module:function'",
    )
    root: value_types.Text = ""
    """folder with data sets laid out as on the Hugging Face hub; '' asks the hub"""
    label: value_types.Text = ""
    """column of a table with the classes, such as coarse_label of cifar100; '' finds it"""
    split: value_types.SplitName = "iid"
    """how the data are dealt to the clients; natural: client number i has the examples of the i-th owner"""


class ModelSettings(Group):
    """The global model."""

    name: value_types.Text
    """cnn, mlp, lenet, preresnet18, preresnet18-later, preresnet50, transformer, or a function from a rate to a model,
    'module:function'
    """
    hidden: value_types.Widths
    """widths of an image model's stages at rate 1"""
    norm: Literal["sbn", "in", "gn", "ln", "none"]
    """norm of an image model: static batch, instance, group (4), layer, none"""
    scaler: bool = True
    """divide activations of smaller models by their rate while they train"""
    shrink: value_types.Shrink = "width"
    """what smaller models lack: channels (width), their last stages or Transformer layers (depth), or both; an image
    model of unequal depth has an exit after each stage
    """
    ensemble: bool = False
    """evaluate the mean of all exits' logits (DepthFL) instead of the deepest exit"""


@group
class TrainSettings(TrainOptions):
    """Training of a client in a round."""

    milestones: value_types.Rounds = same(Training, "milestones")
    lr_decay: Share = same(Training, "lr_decay")
    distill: InnerWidths = "none"
    """widths inside its model that a step of a client trains too, on the posterior of its own width: all, the smallest
    and one drawn (sandwich), one drawn (drawn: FjORD); or, in place of its own, one drawn on labels (ordered: FjORD
    without distillation)
    """
    exits: TrainedExits = "last"
    """exits of its model that a client trains: the deepest alone (last), all with distillation among them (mutual:
    DepthFL), or all with distillation from the deepest (deepest: ScaleFL)
    """
    upload: Upload = same(Training, "upload")
    labels: LabelRule = same(Averaging, "labels")


@group
class ServerSettings(Limits):
    """The server: slices, means and stages."""

    strategy: Literal["heterofl", "fedh2l"] = "heterofl"
    """what clients exchange: parameters (heterofl, with the settings below also FedAvg and others), or posteriors
    (fedh2l)
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
    """further stages between the mean and the new model: server optimisers, as Flower's FedAvgM, FedAdam, FedYogi and
    FedAdagrad, nesterov, feddyn, scaffold, moving-average, or secure-sum, by which the server learns sums of
    changes alone; with their arguments
    """
    robust: Literal["none", RobustKind] = "none"
    """what replaces the mean of an entry's holders, so that a hostile minority cannot move it far: trimmed (a trimmed
    mean) or median; goes with server.weights=equal, and not with privacy.noise
    """
    robust_trim: Annotated[float, Field(ge=0, le=0.49)] = Robust().trim
    """share of an entry's holders that trimmed drops at each end; at least one"""
    robust_few: Few = Robust().few
    """entries of one or two clients: their plain mean, or keep the old value"""
    aggregator: Literal["counting-mean", "product"] = "counting-mean"
    """what combines replies: the counting mean; or, for LoRA adapters of unequal rank, product (FlexLoRA)"""

    def build_robust_mean(self) -> Robust | None:
        """Return what replaces the counting mean; None for nothing."""
        return None if self.robust == "none" else Robust(mean=self.robust, trim=self.robust_trim, few=self.robust_few)


@group
class DistillSettings(DistillOptions):
    """Distillation among peers (FedH2L), and from a model to its exits and inner widths."""

    models: value_types.Architectures = ()
    """the architectures, assigned to clients in turn"""
    label_share: ShareOrNone = 0.0
    """share of the labels in what inner widths (train.distill) learn from; the rest is the posterior"""
    ramp: ShareOrNone = 0.0
    """share of the rounds over which the weight between exits grows (mutual), or before which it is 0 (deepest)"""


@group
class EvaluateSettings(Evaluation):
    """Evaluation of the model."""

    central: Flag = True
    """the server evaluates the global model on the whole test set of data.name"""
    moments_batch_size: Natural = 0
    """samples in a batch whose moments are measured for static batch norm; 0: as train.batch-size, which the paper's
    code uses, or 100 with fidelity=fixed
    """
    metric: value_types.Text = ""
    """a further metric of your own, 'module:function'"""


class EngineSettings(Group):
    """Engine, device and messages."""

    name: Literal["auto", "plain", "compile", "cohort", "seats"] = "auto"
    """how clients train: plain (one by one, the same bit for bit on any grid), compile (plain with torch.compile),
    cohort (clients of one rate together), seats (clients of any rates side by side on a GPU); auto: plain or cohort,
    whichever is likely faster
    """
    cohort: Natural = 0
    """clients that train together at most, of one rate or, with seats, of any; 0: 5 on a CPU, 50 on a GPU"""
    device: value_types.Text = "auto"
    """cpu, mps, cuda or cuda:1; auto: a GPU where a client has one"""
    precision: Precision = "tf32"
    """how clients compute: float32 (exact), tf32 (on a GPU, products round their factors to ten bits; elsewhere as
    float32), bf16 (clients train with bfloat16 products; evaluation is as with tf32)
    """
    window: Natural = 0
    """messages under way at once, which bounds the server's memory; 0 for all ('heterofl run' then uses 64)"""
    timeout: Positive = 3600.0
    """seconds that clients have in a round, evaluation included; later answers are ignored"""


class DevicesSettings(Group):
    """Simulated devices: time, energy and failures."""

    profile: value_types.Text = ""
    """the profile of each level: edge (bundled; its numbers are assumptions), or 'module:function', which returns a
    mapping from levels to DeviceProfile
    """
    deadline: NotNegative = 0.0
    """simulated seconds that a round waits for replies; 0 for no limit"""


class RunSettings(Group):
    """Files and callbacks of a run."""

    dir: value_types.Text = ""
    """folder for settings, history, checkpoints and models; 'heterofl run' makes one"""
    resume: bool = False
    """go on from the last checkpoint in run.dir"""
    checkpoint_every: Interval = 1
    """rounds from one checkpoint to the next, or seconds ('30s'); the last round has one"""
    metric: value_types.Text = ""
    """the metric, such as local-accuracy, that a sweeper that searches goes by; '': the global model's"""
    callbacks: value_types.Callbacks = ("tensorboard",)
    """what is called with the record of each round"""
    metrics_address: value_types.Text = ""
    """where the server serves the run's metrics and health over HTTP, such as 127.0.0.1:9090; '': nowhere"""
    log: Literal["text", "json"] = "text"
    """form of the ServerApp's log lines under 'flwr run': text, or a JSON object each"""


class Settings(Group):
    """All settings of a run, read and checked; every value is concrete."""

    mix: value_types.MixText = Mix.parse("a1-b1-c1-d1-e1")
    """which levels the clients have, and in which proportions; x3: three parts take no part"""
    global_rate: OptionalLevel = same(Slicing, "global_rate")
    assignment: Assignment = same(Slicing, "assignment")
    num_rounds: Count
    """rounds of the run"""
    seed: Natural = 0
    """what every random draw depends on"""
    fidelity: Variant = "paper"
    """what produced the published numbers (paper), or what is right where the authors' code is not (fixed)"""
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
