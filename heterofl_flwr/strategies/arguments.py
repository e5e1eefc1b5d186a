"""Arguments of strategies: names and errors."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec

from flwr.app import ArrayRecord

from heterofl_flwr.common.errors import ConfigError, check_count
from heterofl_flwr.common.options import is_group, specs
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.federation.sampling import Participation

Arguments = ParamSpec("Arguments")

FEDAVG = Participation()
"""Defaults of the arguments that ``FedAvg`` has too."""

CLASSIC: Mapping[str, str] = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn",
}
"""Names of arguments in Flower's classic API, each with the name in the Message API."""

STAGES: Mapping[str, str] = {
    **dict.fromkeys(("server_learning_rate", "server_momentum"), "use stages=[Momentum(...)]"),
    **dict.fromkeys(("eta", "tau", "beta_1", "beta_2"), "use stages=[Adam(...)]"),
}
"""Arguments of Flower's strategies that stages replace here, each with a remedy for the error message."""


def explain_unknown(remedies: Mapping[str, str]) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Return a decorator that makes ``__init__`` raise ``TypeError`` with a remedy for an unknown argument.

    ``remedies`` has texts by argument name. Without a text, the error suggests the argument with the nearest name, or
    lists all arguments.
    """

    def decorate(construct: Callable[Arguments, None]) -> Callable[Arguments, None]:
        parameters = signature(construct).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items() if is_group(parameter.default)}
        places = {  # code that passes an option of a group, such as "sampling=Sampling(spare=...)"
            option: f"{name}={type(default).__name__}({option}=...)"
            for name, default in defaults.items()
            for option in specs(default)
        }
        all_remedies = {**STAGES, **remedies, **{name: f"use {place}" for name, place in places.items()}}
        names = [*parameters, *places]

        @wraps(construct)
        def explained(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> None:
            for name in keywords.keys() - parameters.keys():
                nearest = next(iter(get_close_matches(name, names, n=1)), None)
                guess = f"did you mean {places.get(nearest, nearest)}?" if nearest else ""
                remedy = all_remedies.get(name) or guess or f"it has {', '.join(list(parameters)[1:])}"
                kind, _, _ = construct.__qualname__.partition(".")
                raise TypeError(f"{kind} has no argument {name}: {remedy}")
            construct(*arguments, **keywords)

        return explained

    return decorate


def check_arguments(
    num_rounds: int, initial_arrays: ArrayRecord | None, resume: RunState | None, **functions: object
) -> None:
    """Raise ``ConfigError`` if arguments of ``start`` are wrong or contradict one another.

    Each of ``functions`` must be callable or None.
    """
    check_count("num_rounds", num_rounds, 0)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name} is {function!r}; expected a function")
    if resume is not None and initial_arrays is not None:
        raise ConfigError("found both resume and initial_arrays: leave out initial_arrays, as resume has the model")
    if not isinstance(resume, RunState | None):
        raise ConfigError(
            f"resume is of type {type(resume).__name__}; expected the state of a run, such as "
            f"RunFolder(path).load_checkpoint()"
        )
    if resume is not None and resume.server_round > num_rounds:
        raise ConfigError(
            f"resume is the state after round {resume.server_round}; expected num_rounds of that or more, found "
            f"{num_rounds}"
        )
    if initial_arrays is not None and not isinstance(initial_arrays, ArrayRecord):
        raise ConfigError(
            f"initial_arrays is of type {type(initial_arrays).__name__}; expected an ArrayRecord, such as "
            f"ArrayRecord(model.state_dict())"
        )
