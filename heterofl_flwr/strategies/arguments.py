"""Arguments of strategies: names and errors."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec

from flwr.app import ArrayRecord
from torch import Tensor

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

REMEDIES: Mapping[str, str] = {
    **{name: f"use {flower_name}" for name, flower_name in CLASSIC.items()},
    **dict.fromkeys(("server_learning_rate", "server_momentum"), "use stages=[Momentum(...)]"),
    **dict.fromkeys(("eta", "tau", "beta_1", "beta_2"), "use stages=[Adam(...)]"),
    "weighted_by_key": "leave it out: the number of examples is num-examples among the metrics",
    **dict.fromkeys(("arrayrecord_key", "configrecord_key"), "leave it out: the records are arrays and config"),
    **dict.fromkeys(("beta", "num_malicious_clients"), "use averaging=Averaging(robust=Robust(...))"),
    "eta_l": "use training=Training(learning_rate=...)",
    **dict.fromkeys(("accept_failures", "min_completion_rate_fit"), "use sampling=Sampling(min_replies=...)"),
    "inplace": "leave it out",
    "initial_parameters": "use start(initial_arrays=...)",
    "on_fit_config_fn": "use start(train_config=...)",
    "on_evaluate_config_fn": "use start(evaluate_config=...)",
    **{name: f"use start({name}=...)" for name in ("evaluate_fn", "num_rounds", "initial_arrays")},
    "train_config": "use start(train_config=...), or on_fit_config_fn in the classic API",
    **{name: f"use start({name}=...)" for name in ("evaluate_config", "should_stop", "resume")},
}
"""Arguments of Flower's strategies and of ``start`` that ``HeteroFL`` lacks, each with a remedy for the error message.
"""


def explain_unknown(construct: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make the ``__init__`` of ``HeteroFL`` raise ``TypeError`` with a remedy for an unknown argument."""
    parameters = signature(construct).parameters
    names = list(parameters)[1:]
    remedies = {name: f"did you mean {name}?" for name in names} | dict(REMEDIES)
    remedies |= {  # code that passes an option of a group, such as "sampling=Sampling(spare=...)"
        option: f"use {name}={type(parameter.default).__name__}({option}=...)"
        for name, parameter in parameters.items()
        if is_group(parameter.default)
        for option in specs(parameter.default)
    }

    @wraps(construct)
    def explained(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> None:
        for name in keywords.keys() - parameters.keys():
            near = get_close_matches(name, remedies, n=1, cutoff=0.8)
            remedy = remedies[near[0]] if near else f"it has {', '.join(names)}"
            raise TypeError(f"HeteroFL has no argument {name}: {remedy}")
        construct(*arguments, **keywords)

    return explained


def _holds_tensors(state: object) -> bool:
    return isinstance(state, Mapping) and all(isinstance(tensor, Tensor) for tensor in state.values())


def _wrong_type(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name} is of type {type(value).__name__}; expected {expected}")


def check_arguments(num_rounds: int, initial_arrays: ArrayRecord | None, resume: RunState | None) -> None:
    """Raise ``ConfigError`` if arguments of ``start`` are wrong or contradict one another."""
    check_count("num_rounds", num_rounds, 0)
    if resume is not None and initial_arrays is not None:
        raise ConfigError("found both resume and initial_arrays: leave out initial_arrays, as resume has the model")
    if not isinstance(initial_arrays, ArrayRecord | None):
        raise _wrong_type("initial_arrays", initial_arrays, "an ArrayRecord, such as ArrayRecord(model.state_dict())")
    if resume is None:
        return
    if not isinstance(resume, RunState):
        raise _wrong_type("resume", resume, "the state of a run, such as RunFolder(path).load_checkpoint()")
    if not _holds_tensors(resume.state):
        raise _wrong_type("resume.state", resume.state, "tensors by name, such as arrays.to_torch_state_dict()")
    if resume.server_round > num_rounds:
        raise ConfigError(
            f"resume is the state after round {resume.server_round}; expected num_rounds of that or more, found "
            f"{num_rounds}"
        )
