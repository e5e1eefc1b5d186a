"""Arguments by their names in Flower's two APIs, and what is said of one that a strategy does not have."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec

from heterofl_flwr.common.options import specs
from heterofl_flwr.federation.admission import Limits
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.stages.privacy import Privacy

Arguments = ParamSpec("Arguments")

CLASSIC: Mapping[str, str] = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn",
}
"""From what Flower's classic API calls an argument to what its Message API does."""

IN_GROUPS: Mapping[str, str] = {
    **{name: f"use {kind.__name__.lower()}={kind.__name__}({name}=...)"
       for kind in (Limits, Privacy, Evaluation) for name in specs(kind)},
    **dict.fromkeys(("server_learning_rate", "server_momentum"), "use stages=[Momentum(...)]"),
    **dict.fromkeys(("eta", "tau", "beta_1", "beta_2"), "use stages=[Adam(...)]"),
}  # fmt: skip
"""From an option that another argument has to that argument."""


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
                kind, _, _ = construct.__qualname__.partition(".")
                raise TypeError(f"{kind} has no argument {name}: {remedy}")
            construct(*arguments, **keywords)

        return explained

    return decorate
