"""Flower's own arguments about records and metrics, and what is said of an argument that a strategy does not have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec

from flwr.app import MetricRecord, RecordDict

from heterofl_flwr import messages
from heterofl_flwr.errors import check_fields
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.options import Limits
from heterofl_flwr.stages.privacy import Privacy

MetricsFn = Callable[[list[RecordDict], str], MetricRecord]
"""From the records of replies and the key of their weights to one record of metrics."""

Arguments = ParamSpec("Arguments")

IN_GROUPS: Mapping[str, str] = {
    **{own.name: f"use limits=Limits({own.name}=...)" for own in fields(Limits)},
    **{own.name: f"use privacy=Privacy({own.name}=...)" for own in fields(Privacy)},
    **{own.name: f"use evaluation=Evaluation({own.name}=...)" for own in fields(Evaluation)},
    **dict.fromkeys(("server_learning_rate", "server_momentum"), "use stages=[Momentum(...)]"),
    **dict.fromkeys(("eta", "tau", "beta_1", "beta_2"), "use stages=[Adam(...)]"),
}
"""From an option that another argument has to that argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """The records of messages, and who computes metrics from them: Flower's own arguments, as ``HeteroFL`` has them."""

    train_metrics_aggr_fn: MetricsFn | None
    evaluate_metrics_aggr_fn: MetricsFn | None
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str

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


def explain_unknown(
    remedies: Mapping[str, str],
) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Let a constructor say of an argument that it does not have what to use: by name, or the nearest that it has."""

    def decorate(construct: Callable[Arguments, None]) -> Callable[Arguments, None]:
        known = list(signature(construct).parameters)

        @wraps(construct)
        def explained(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> None:
            for name in keywords.keys() - known:
                near = [f"did you mean {own}?" for own in get_close_matches(name, known, n=1)]
                remedy = {**IN_GROUPS, **remedies}.get(name) or next(iter(near), f"it has {', '.join(known[1:])}")
                raise TypeError(f"{type(arguments[0]).__name__} has no argument {name}: {remedy}")
            construct(*arguments, **keywords)

        return explained

    return decorate
