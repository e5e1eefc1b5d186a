"""The final model of each level, cut from the global one by its plan; and how to get it back."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from heterofl_flwr.core.layer_rules import untied
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ShapeError
from heterofl_flwr.federation.records import RoundRecord, State
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms, with_static_norm
from heterofl_flwr.runs.folder import RunFolder


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
        if record and record.few_answered:
            facts["evaluated_by"] = f"{record.evaluate_answers} of {record.evaluate_asked} clients"
        name = f"{family}-{level}" if family else level
        folder.save_model(name, plan.extract(untied(models[max(rates)], state)), (moments or {}).get(rate, {}), facts)


def model_facts(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return what was written about each final model, by its name; each family's largest first.

    A run writes them when it ends. Where clients keep parameters of their own there are none.
    """
    found = {}
    for path in folder.models.glob("*.json"):
        try:
            facts = dict(json.loads(path.read_text(encoding="utf-8")))
            found[path.stem] = {"family": "", **facts, "rate": float(facts["rate"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
    return dict(sorted(found.items(), key=lambda item: (item[1]["family"], -item[1]["rate"])))


def load_model(folder: RunFolder, name: str, build: Callable[[float], nn.Module]) -> nn.Module:
    """Return a level's final model in evaluation mode, its batch norm with the moments that were measured on it.

    Parameters
    ----------
    folder : RunFolder
        Of a run that has ended.
    name : str
        A level, or with several families ``family-level``: a file's name in ``models/``, without its ending.
    build : Callable[[float], nn.Module]
        From a rate to the run's model, or its family's.

    Raises
    ------
    ConfigError
        If there is no such model, or batch norm was not measured on it.
    ShapeError
        If it is not what ``build`` makes.
    """
    facts = model_facts(folder)
    if name not in facts:
        raise ConfigError(f"{folder.path} has no model {name!r}; expected one of {', '.join(facts) or 'none'}")
    rate = facts[name]["rate"]
    with torch.random.fork_rng(devices=[]):
        model = build(rate)
    state = untied(model, _tensors(folder.models / f"{name}.safetensors"))
    moments = folder.models / f"{name}.moments.safetensors"
    _check_fit(state, model, f"model {name} of {folder.path} is not what build({rate:g}) makes")
    model.load_state_dict(state, strict=False)
    if moments.exists():
        return with_static_norm(model, Moments.from_tensors(_tensors(moments)))
    if any(layer.running_mean is None for layer in batch_norms(model).values()):
        raise ConfigError(
            f"model {name} of {folder.path} has batch norm that was not measured: let the run evaluate each level's "
            f'model in its last round (evaluate.levels=last, or Evaluation(levels="last"))'
        )
    return model.eval()


def _check_fit(state: State, model: nn.Module, what: str) -> None:
    own = dict(model.named_parameters())
    found = {name: tuple(value.shape) for name, value in state.items()}
    expected = {name: tuple(value.shape) for name, value in own.items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        shown = "; ".join(f"{name}: found {found.get(name)}, expected {expected.get(name)}" for name in wrong[:3])
        raise ShapeError(f"{what} ({shown}): is it the run's own build, with the run's settings?")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load(path.read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {error!r}; a run writes it when it ends: go on with it, or run it anew")


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
