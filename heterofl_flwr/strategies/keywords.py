"""The keyword arguments of the strategies, Flower's own names and ours, and the federation that they describe.

Each option is explained in its group: ``Sampling``, ``Transfer``, ``Averaging``, ``Limits``, ``Privacy``,
``Evaluation`` and ``RecordOptions``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import MetricsAggregationFn, Scalar

from heterofl_flwr import messages
from heterofl_flwr.core.counting_mean import Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.plan import ALL
from heterofl_flwr.core.reply_checks import LabelRule
from heterofl_flwr.core.robust import Robust
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.errors import ConfigError, check_fields
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.limits import Limits, MinReplies
from heterofl_flwr.federation.options import Assignment, Averaging, Options, Sampling, Schedule, Transfer
from heterofl_flwr.federation.records import RoundCallback
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.chain import OpenMean
from heterofl_flwr.stages.compress import Upload
from heterofl_flwr.stages.privacy import Privacy
from heterofl_flwr.stages.stage import Stage

MetricsFn = Callable[[list[RecordDict], str], MetricRecord]
"""From the records of replies and the key of their weights to one record of metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """The records of messages, and who computes metrics from them: Flower's own arguments.

    Attributes
    ----------
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in ``FedAvg``: from what clients replied, and ``weighted_by_key``, to metrics. Records of parameters are left
        out, for they are dropped as soon as they are added up, and so are replies of clients that evaluate a smaller
        rate's model alone. None: the means, weighted by examples.
    weighted_by_key
        As in ``FedAvg``: the metric by which means are weighted, and parameters too with ``weights="examples"``.
    arrayrecord_key, configrecord_key
        As in ``FedAvg``: the names of the records of parameters and of the config in instructions.
    """

    train_metrics_aggr_fn: MetricsFn | None = None
    evaluate_metrics_aggr_fn: MetricsFn | None = None
    weighted_by_key: str = messages.NUM_EXAMPLES
    arrayrecord_key: str = messages.ARRAYS
    configrecord_key: str = messages.CONFIG

    def __post_init__(self) -> None:
        """Validate the names: other records of our messages must not have them."""
        arrays, config, others = self.arrayrecord_key, self.configrecord_key, messages.RECORDS | {""}
        expected = f"a name other than {', '.join(sorted(messages.RECORDS))}"
        check_fields(
            self,
            (
                ("weighted_by_key", bool(self.weighted_by_key), "a name"),
                ("arrayrecord_key", arrays == messages.ARRAYS or arrays not in others, expected),
                ("configrecord_key", config == messages.CONFIG or config not in others, expected),
                ("configrecord_key", config != arrays, "another name than arrayrecord_key"),
            ),
        )

    def rename_records(self, sent: Iterable[Message]) -> None:
        """Rename the records of messages; clients know them by their kind."""
        for message in sent:
            for own, new in ((messages.ARRAYS, self.arrayrecord_key), (messages.CONFIG, self.configrecord_key)):
                if own != new:
                    message.content[new] = message.content.pop(own)


class CommonKeywords(TypedDict, total=False):
    """The options of the strategies of both APIs: groups, and single options of the first three groups."""

    assignment: Assignment
    global_rate: str | float | None
    seed: int
    sampling: Sampling
    transfer: Transfer
    averaging: Averaging
    limits: Limits | None
    privacy: Privacy | None
    evaluation: Evaluation | None
    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int | None
    min_evaluate_nodes: int | None
    min_available_nodes: int
    min_replies: MinReplies
    wait: float
    learning_rate: Schedule | None
    slice_rule: SliceRule
    roll_by: int
    weights: Weights
    label_rows: Sequence[str] | None
    labels: LabelRule
    fidelity: Fidelity | None
    robust: Robust | None
    aggregator: OpenMean
    stages: Sequence[Stage]


class Keywords(CommonKeywords, total=False):
    """The options of strategies of the Message API."""

    callbacks: Sequence[RoundCallback]
    spare: float
    upload: Upload
    shared: Sequence[str]
    train_metrics_aggr_fn: MetricsFn | None
    evaluate_metrics_aggr_fn: MetricsFn | None
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str


class ClassicKeywords(CommonKeywords, total=False):
    """The options of the strategy of the classic API, of which some have Flower's classic names too."""

    fraction_fit: float | None
    min_fit_clients: int | None
    min_evaluate_clients: int | None
    min_available_clients: int | None
    fit_metrics_aggregation_fn: MetricsAggregationFn | None
    evaluate_metrics_aggregation_fn: MetricsAggregationFn | None
    on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None
    on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None
    accept_failures: bool
    inplace: bool


CLASSIC: Mapping[str, str] = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
}
"""From an argument of the classic ``FedAvg`` to the option that it is here."""

_MESSAGE_API = "use heterofl_flwr.HeteroFL, or leave it"
NOT_CLASSIC: Mapping[str, str] = {
    "train_metrics_aggr_fn": "use fit_metrics_aggregation_fn",
    "evaluate_metrics_aggr_fn": "use evaluate_metrics_aggregation_fn",
    "weighted_by_key": "it weights by num_examples, so leave it",
    "arrayrecord_key": "it has no records, so leave it",
    "configrecord_key": "it has no records, so leave it",
    "devices": "simulated devices go around a grid, so use heterofl_flwr.HeteroFL",
    "callbacks": f"nothing in it says that a round has ended; {_MESSAGE_API}",
    "upload": f"it sends parameters as they are; {_MESSAGE_API}",
    "shared": f"it sends parameters without their names, so none can stay with a client; {_MESSAGE_API}",
    "spare": f"it waits for all clients that it asks; {_MESSAGE_API}",
}
"""From an option that the classic API has no place for to what to do."""

DEFAULTS: Mapping[str, object] = {"callbacks": (), "upload": "float32", "shared": ALL, "spare": 0.0}
"""What those of them that change nothing may be."""

GROUPS: Mapping[str, type[Any]] = {"sampling": Sampling, "transfer": Transfer, "averaging": Averaging}
"""The groups whose options may be given alone."""


def pick(names: Iterable[str], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keyword arguments that have one of these names."""
    return {name: keywords[name] for name in names if name in keywords}


def build_federation(build: Build, mix: str | Mix, keywords: Mapping[str, Any], known: type = Keywords) -> Federation:
    """Return the federation that a strategy's arguments describe, of which ``known`` is the ``TypedDict``."""
    if unknown := keywords.keys() - known.__annotations__.keys():
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in keywords.items() if value is not None}
    groups = {
        name: replace(given.get(name, kind()), **pick([own.name for own in fields(kind)], given))
        for name, kind in GROUPS.items()
    }
    options = Options(**groups, **pick(("limits", "privacy", "evaluation"), given))
    parsed = (mix if isinstance(mix, Mix) else Mix.parse(mix)).with_global_rate(given.get("global_rate"))
    return Federation(build=build, mix=parsed, options=options, **pick(("assignment", "seed"), given))


def build_classic_federation(build: Build, mix: str | Mix, keywords: Mapping[str, Any]) -> Federation:
    """Return the federation that the arguments of the classic strategy describe."""
    _check_classic(keywords)
    own = {name: value for name, value in keywords.items() if name not in DEFAULTS}
    for name, new in CLASSIC.items():
        value = own.pop(name, None)
        if value is not None and new in own:
            raise ConfigError(f"{name} and {new} are the same option: give one of them")
        if value is not None:
            own[new] = value
    federation = build_federation(build, mix, own, ClassicKeywords)
    transfer, sampling = federation.options.transfer, federation.options.sampling
    _check_classic({"upload": transfer.upload, "shared": tuple(transfer.shared), "spare": sampling.spare})
    return federation


def _check_classic(options: Mapping[str, object]) -> None:
    """Raise ``ConfigError`` for an option that the classic API has no place for, unless it changes nothing."""
    for name in options.keys() & NOT_CLASSIC.keys():
        if name not in DEFAULTS or options[name] != DEFAULTS[name]:
            raise ConfigError(f"the classic API has no {name}: {NOT_CLASSIC[name]}")
