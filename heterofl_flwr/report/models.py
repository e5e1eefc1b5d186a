"""The final model of each level, cut from the global one by its plan."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.methods.callbacks import RoundRecord, State
from heterofl_flwr.report.run_folder import RunFolder


def save_models(
    folder: RunFolder,
    build: Callable[[float], nn.Module],
    rates: Sequence[float],
    state: State,
    *,
    moments: Mapping[float, State] | None = None,
    record: RoundRecord | None = None,
    family: str = "",
) -> None:
    """Write the model of each rate as safetensors with a JSON file beside it.

    Load one with ``build(rate).load_state_dict(safetensors.torch.load_file(path), strict=False)``.

    Parameters
    ----------
    folder : RunFolder
        Where to.
    build : Callable[[float], nn.Module]
        From a rate to a model.
    rates : Sequence[float]
        The rates; the largest is the global model's.
    state : State
        The global model's parameters.
    moments : Mapping[float, State] | None
        Static batch norm moments by the rate of the model that they were measured on. A smaller model sees other
        activations than the same channels of the global one, so its moments cannot be cut from the global model's.
    record : RoundRecord | None
        The last round with evaluation, for the metrics in the JSON files.
    family : str
        Whose model it is, where there are several (``Hybrid``): part of the files' names.
    """
    whole, by_level = (record.evaluate, record.evaluate_by_level) if record else ({}, {})
    with torch.random.fork_rng(devices=[]):  # building draws weights, and no one must notice
        models = {rate: build(rate) for rate in rates}
    for rate, model in models.items():
        plan = Plan.of(models[max(rates)], model)
        level = level_name(rate)
        metrics = _of_family(family, by_level.get(level, {}))
        if rate == max(rates):
            metrics = {**_of_family(family, whole), **metrics}
        facts: dict[str, object] = {
            "rate": rate,
            "global_rate": max(rates),
            "parameters": plan.parameters,
            "server_round": record.server_round if record else None,
            "metrics": metrics,
        }
        facts |= {"level": level, "family": family} if family else {}
        name = f"{family}-{level}" if family else level
        folder.save_model(name, plan.extract(state), (moments or {}).get(rate, {}), facts)


def _of_family(family: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a family's own metrics; where there are none, all."""
    prefix = f"{family}/" if family else ""
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def moments_by_rate(moments: State, global_rate: float) -> dict[float, State]:
    """Return a round's moments by the rate of the model that they were measured on.

    Strategies put the rate and a slash before each name; moments without a rate are the global model's.
    """
    found: dict[float, dict[str, Tensor]] = {}
    for name, value in moments.items():
        rate, slash, rest = name.partition("/")
        found.setdefault(float(rate) if slash else global_rate, {})[rest if slash else name] = value
    return dict(found)
