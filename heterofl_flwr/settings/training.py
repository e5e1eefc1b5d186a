"""The settings of what is learnt: data, model, training, who trains, and whose quirks are kept."""

from dataclasses import dataclass, fields
from typing import Annotated, get_args

from heterofl_flwr.core.compression import Upload
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.core.label_rows import LabelRule
from heterofl_flwr.federation.limits import MinReplies
from heterofl_flwr.nn.loss import Fill
from heterofl_flwr.settings import kinds
from heterofl_flwr.settings.kinds import AUTO, Setting
from heterofl_flwr.training.device import Precision


def _quirk(help_: str) -> Setting:
    """Return one place where the authors' code and what is right differ."""
    return Setting("", kinds.choice("paper", "fixed", ""), help_)


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelitySettings:
    """Where the authors' code and what is right differ; see ``Fidelity``."""

    default: Annotated[
        Variant, Setting("paper", kinds.choice("paper", "fixed"), "what the quirks below are where they are ''")
    ]
    encoder_init: Annotated[
        Variant, _quirk("Transformer layers start as identical copies (paper) or are drawn one by one (fixed)")
    ]
    mask_fill: Annotated[Variant, _quirk("logits of classes that a client lacks become 0 (paper) or -inf (fixed)")]
    label_rows: Annotated[
        Variant, _quirk("classifier rows count by label even without a masked loss (paper), or only with one (fixed)")
    ]
    extra_rows: Annotated[
        Variant, _quirk("rows beyond the classes are never averaged (paper) or count for every holder (fixed)")
    ]
    moments: Annotated[
        Variant, _quirk("static batch norm averages moments of batches (paper) or pools all samples (fixed)")
    ]
    shards: Annotated[
        Variant, _quirk("a client that is dealt a class twice keeps one shard of it (paper) or both (fixed)")
    ]
    perplexity: Annotated[
        Variant, _quirk("mean over chunks of exp(loss) (paper) or exp of the mean over tokens (fixed)")
    ]

    def to_core(self) -> Fidelity:
        """Return the quirks as the maths takes them."""
        return Fidelity(**{one.name: getattr(self, one.name) for one in fields(Fidelity)})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What the clients learn from."""

    name: Annotated[
        str,
        Setting(
            "digits",
            kinds.text("a name, a folder or 'module:function'", r"\S(?:.*\S)?"),
            "data set: digits (bundled), mnist, cifar10, wikitext2, a folder, or 'module:function'",
        ),
    ]
    root: Annotated[
        str, Setting("", kinds.path(), "folder with data sets laid out as on the Hugging Face hub; '' asks the hub")
    ]
    split: Annotated[
        str,
        Setting(
            "iid",
            kinds.split(),
            "how the data are dealt to the clients",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The global model, of which clients train parts."""

    name: Annotated[
        str,
        Setting(
            AUTO,
            kinds.text("a model's name or 'module:function'", r"[\w-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*"),
            "cnn, preresnet18, preresnet18-later, preresnet50, transformer, or 'module:function' (rate to model)",
        ),
    ]
    hidden: Annotated[
        tuple[int, ...],
        Setting(
            AUTO,
            kinds.integers("widths such as '64,128,256,512', or '' for the model's own"),
            "widths of an image model's stages at rate 1",
        ),
    ]
    norm: Annotated[
        str,
        Setting(
            AUTO,
            kinds.choice("sbn", "in", "gn", "ln", "none"),
            "norm of an image model: static batch, instance, group (4), layer, none",
        ),
    ]
    scaler: Annotated[
        bool, Setting(True, kinds.flag(), "divide activations of smaller models by their rate while they train")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What a client does in a round."""

    lr: Annotated[float, Setting(AUTO, kinds.number(above=0), "learning rate of SGD in the first round")]
    milestones: Annotated[
        tuple[int, ...],
        Setting(
            AUTO,
            kinds.integers("ascending rounds such as '150,250', or '' for none", ascending=True),
            "rounds from which on the learning rate is multiplied by train.factor",
        ),
    ]
    factor: Annotated[
        float, Setting(0.1, kinds.number(above=0, most=1), "what a milestone multiplies the learning rate by")
    ]
    epochs: Annotated[int, Setting(AUTO, kinds.integer(1), "passes over a client's data in a round")]
    batch_size: Annotated[int, Setting(AUTO, kinds.integer(1), "samples in a step; rows of text for a Transformer")]
    momentum: Annotated[float, Setting(0.9, kinds.decay(), "momentum of SGD, which begins anew each round")]
    weight_decay: Annotated[float, Setting(5e-4, kinds.number(least=0), "weight decay on all parameters")]
    clip: Annotated[float, Setting(1.0, kinds.number(least=0), "largest norm of a step's gradient; 0 for no limit")]
    proximal: Annotated[
        float, Setting(0.0, kinds.number(least=0), "weight of FedProx's pull towards the round's global model")
    ]
    ordered_dropout: Annotated[
        bool,
        Setting(
            False, kinds.flag(), "each batch trains the client's model or a smaller one of the mix inside it (FjORD)"
        ),
    ]
    mask_fill: Annotated[
        Fill,
        Setting(
            AUTO,
            kinds.choice("zero", "-inf", "none"),
            "logits of classes that a client lacks, in its loss; auto: as fidelity.mask-fill",
        ),
    ]
    precision: Annotated[
        Precision,
        Setting(
            "float32",
            kinds.choice(*get_args(Precision)),
            "bits of the products in a step; parameters and their averages stay in float32",
        ),
    ]
    upload: Annotated[
        Upload,
        Setting(
            "float32",
            kinds.choice(*get_args(Upload)),
            "how clients send what they trained: as it is (float32), or what it changed by in two bytes (float16) or "
            "in one (int8)",
        ),
    ]
    labels: Annotated[
        LabelRule,
        Setting(
            "sent",
            kinds.choice(*get_args(LabelRule)),
            "which classifier rows of a reply count: clients say which classes they have (sent), the server sees which "
            "rows were trained (inferred), or all (none)",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """Which clients take part in a round."""

    fraction: Annotated[
        float, Setting(AUTO, kinds.number(above=0, most=1), "share of the clients that train in a round")
    ]
    spare: Annotated[
        float,
        Setting(
            0.0,
            kinds.number(least=0),
            "share of clients that are asked to train beyond those that are needed; a round ends as soon as enough "
            "have answered, so which of them count is no longer the same in each run",
        ),
    ]
    min_nodes: Annotated[
        int, Setting(2, kinds.integer(1), "nodes to wait for before the first round; 'heterofl run' waits for all")
    ]
    min_replies: Annotated[
        MinReplies,
        Setting(
            AUTO,
            kinds.replies(),
            "good replies below which a round, and with it the run, fails: a number, a share of the clients that it "
            "needs, or half of them (auto)",
        ),
    ]
    wait: Annotated[
        float, Setting(15.0, kinds.number(least=0), "seconds to wait for sample.min-nodes before the run fails")
    ]
