"""Writing and loading of the final model of each level."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.common.files import reading, to_json, write_atomic
from heterofl_flwr.common.named_tensors import name_misfits, pack
from heterofl_flwr.core.exchanged import exchanged_parameters, untied
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.slice_rules import SliceFunction
from heterofl_flwr.federation.round_record import RoundRecord, State
from heterofl_flwr.nn.buffers import renew_spectral_norms
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import remove_statistics, set_static_norm
from heterofl_flwr.runs.folder import RunFolder


def holds_model(build: Build, rate: float, state: State) -> bool:
    """Whether ``state`` has every exchanged parameter of the model of ``rate``.

    If clients keep layers, the server's state lacks these layers.
    """
    model = new_model(build, rate)
    return exchanged_parameters(model).keys() <= untied(model, state).keys()


def check_shapes(build: Build, rate: float, state: State) -> None:
    """Raise ``ConfigError`` if a parameter in ``state`` has another shape than in the model of ``rate``."""
    model = new_model(build, rate)
    tensors, expected = untied(model, state), exchanged_parameters(model)
    common = tensors.keys() & expected.keys()
    if wrong := name_misfits(*({name: named[name] for name in common} for named in (tensors, expected))):
        raise ConfigError(
            f"the run begins with parameters of other shapes than those of build({rate:g}), the global model of costs "
            f"({wrong}): give Costs the run's build and mix, with the global rate of Slicing as in "
            f"Mix.parse('b1-c1').with_global_rate('a'), and start no initial_arrays of another model"
        )


def save_models(
    folder: RunFolder,
    build: Build,
    rates: Sequence[float],
    state: State,
    *,
    moments: Mapping[float, Moments] = MappingProxyType({}),
    slices: Mapping[float, SliceFunction] = MappingProxyType({}),
    levels: Mapping[float, State] = MappingProxyType({}),
    record: RoundRecord | None = None,
) -> None:
    """Write the model of each rate as safetensors files (parameters, moments) and a JSON file.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    build : Callable[[float], nn.Module]
        Function from a rate to a new model.
    rates : Sequence[float]
        The rates of the models to write; the largest is the global model's.
    state : State
        The global model's parameters.
    moments : Mapping[float, Moments]
        Static batch norm moments, measured on the model of each rate.
    slices : Mapping[float, SliceFunction]
        By rate, the function that selects the model's entries; by default the first entries.
    levels : Mapping[float, State]
        By rate, values of parameters that replace the global model's values.
    record : RoundRecord | None
        Record of the final round, if it was evaluated. Its metrics are written into the JSON files.
    """
    largest = max(rates)
    models = {rate: new_model(build, rate) for rate in rates}
    for rate, model in models.items():
        level, plan = level_name(rate), Plan.of(models[largest], model)
        if rate in slices and rate != largest:
            plan = plan.sliced(slices[rate])
        tensors = {**plan.extract(untied(models[largest], state)), **levels.get(rate, {})}
        metrics: dict[str, float] = {}
        few = {}
        if record:
            metrics = {**(record.evaluate if rate == largest else {}), **record.evaluate_by_level.get(level, {})}
            if record.few_answered:
                few = {"evaluated_by": f"{record.evaluate_answers} of {record.evaluate_asked} clients"}
        facts = {
            "level": level,
            "rate": rate,
            "global_rate": largest,
            "parameters": plan.parameters,
            "server_round": record.server_round if record else None,
            "metrics": metrics,
            **few,
            "shapes": {key: list(value.shape) for key, value in tensors.items()},
        }
        write_atomic(folder.models / f"{level}.safetensors", pack(tensors))
        if rate in moments:
            write_atomic(folder.models / f"{level}.moments.safetensors", pack(moments[rate].to_tensors()))
        write_atomic(folder.models / f"{level}.json", f"{to_json(facts, indent=2)}\n".encode())


_REMEDY = "a run writes it when it ends: go on with it, or run it anew"


def model_facts(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the content of each model's JSON file by level, the model of the highest rate first."""
    models: dict[str, dict[str, Any]] = {}
    for path in folder.models.glob("*.json"):
        if not path.stem[0].isalnum() or not path.stem.isprintable():
            raise ConfigError(f"{folder.models} has a model named {path.stem!r}; expected a level such as a, or a rate")
        with reading(path, _REMEDY):
            facts = dict(json.loads(path.read_bytes()))
            numbers = {"rate": float(facts["rate"]), "parameters": int(facts["parameters"])}
            models[path.stem] = {**facts, **numbers}
    return dict(sorted(models.items(), key=lambda item: -item[1]["rate"]))


def load_model(folder: RunFolder | str | Path, name: str, build: Build) -> nn.Module:
    """Return the final model of a level in evaluation mode, with its batch norm moments.

    Parameters
    ----------
    folder : RunFolder | str | Path
        Folder of a finished run.
    name : str
        Name of the level, such as ``a``.
    build : Callable[[float], nn.Module]
        The run's function from a rate to a new model.

    Raises
    ------
    ConfigError
        If the model does not exist, or its batch norm moments were not measured.
    ShapeError
        If the stored parameters do not fit the model that ``build`` makes.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    facts = model_facts(folder)
    if name not in facts:
        raise ConfigError(
            f"{folder.path} has no model {name!r}; expected one of {', '.join(facts) or 'none'}: a run writes them "
            f"when it ends, in code with Recorder(folder, costs=...), unless clients keep layers"
        )
    rate = facts[name]["rate"]
    with kept_random_state():
        model = build(rate)
    state = untied(model, _load_tensors(folder.models / f"{name}.safetensors"))
    if wrong := name_misfits(state, exchanged_parameters(model)):
        raise ShapeError(
            f"model {name} of {folder.path} is not what build({rate:g}) makes ({wrong}): is it the run's own build, "
            f"with the run's settings?"
        )
    model.load_state_dict(state, strict=False)
    renew_spectral_norms(model)
    moments = folder.models / f"{name}.moments.safetensors"
    if moments.exists():
        return set_static_norm(model, Moments.from_tensors(_load_tensors(moments)))
    if batch_norms(model):
        raise ConfigError(
            f"model {name} of {folder.path} has batch norm that was not measured: start a run that evaluates each "
            f'level\'s model in its last round (evaluate.levels=last, or Evaluation(levels="last")) by a client that '
            f"can hold it, or, if this run was ended early, go on with it for a round"
        )
    return remove_statistics(model).eval()


def _load_tensors(path: Path) -> dict[str, Tensor]:
    with reading(path, _REMEDY):
        return dict(load(path.read_bytes()))
