"""Between ``Settings`` and the flat, kebab-case mapping of a run config: one strict parser for every door."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, get_origin, get_type_hints

from heterofl_flwr.core.sharing import ALL
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.groups import Settings
from heterofl_flwr.settings.kinds import AUTO, Flat, Setting
from heterofl_flwr.settings.presets import OTHER, preset, takes
from heterofl_flwr.settings.server import ETA, ServerSettings


def key_of(group: str, name: str) -> str:
    """Return the key of a field: ``("train", "batch_size")`` is ``train.batch-size``."""
    return ".".join(filter(None, [group, name])).replace("_", "-")


@cache
def _own(group: type) -> dict[str, Setting]:
    """Return the settings of a group by the names of their fields."""
    hints = get_type_hints(group, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


def _groups() -> dict[str, type]:
    """Return the groups by name; the settings without a group come first, under ''."""
    return {"": Settings} | {
        name: hint for name, hint in get_type_hints(Settings).items() if name not in _own(Settings)
    }


GROUPS: Mapping[str, type] = MappingProxyType(_groups())
"""The groups of settings by name."""

SPECS: Mapping[str, Setting] = MappingProxyType(
    {key_of(group, name): spec for group, kind in GROUPS.items() for name, spec in _own(kind).items()}
)
"""Every setting by its key."""

DEFAULTS: Mapping[str, Flat] = MappingProxyType({key: spec.default for key, spec in SPECS.items()})
"""The run config of a run that changes nothing."""

AUTO_KEYS: Sequence[str] = tuple(OTHER)
"""The settings whose ``auto`` stands for a value of the data set."""


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested tables as one, with dots in its keys."""
    flat: dict[str, object] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def from_flat(mapping: Mapping[str, object]) -> Settings:
    """Return the settings that a run config describes.

    Keys that are missing have their default. All faults are collected and raised in one ``ConfigError``.
    """
    faults = [_unknown(key) for key in mapping if key not in SPECS]
    values: dict[str, object] = {}
    given = {**DEFAULTS, **{key: value for key, value in mapping.items() if key in SPECS}}
    concrete = _resolved(given)
    for key, value in concrete.items():
        try:
            values[key] = _read(key, value)
        except ConfigError as error:
            faults.append(str(error))
    if not faults:
        settings = _assemble(values)
        faults = list(_contradictions(settings, given))
    if faults:
        several = f"{len(faults)} settings are not usable:\n  " if len(faults) > 1 else ""
        raise ConfigError(several + "\n  ".join(faults))
    return settings


def to_flat(settings: Settings) -> dict[str, Flat]:
    """Return the run config of these settings, every value concrete; ``from_flat`` reads it back."""
    flat: dict[str, Flat] = {}
    for group, kind in GROUPS.items():
        holder = getattr(settings, group) if group else settings
        flat |= {key_of(group, name): spec.kind.write(getattr(holder, name)) for name, spec in _own(kind).items()}
    return flat


def _unknown(key: str) -> str:
    # A key without its group, or with a wrong one, need not be near in letters.
    near = [known for known in SPECS if known.rpartition(".")[2] == key.rpartition(".")[2]]
    near = near or get_close_matches(key, SPECS, n=1)
    hint = f"did you mean {' or '.join(near)}?" if near else "'heterofl settings' lists them all"
    return f"{key}: no setting has this name; {hint}"


def _resolved(given: Mapping[str, object]) -> dict[str, object]:
    """Return the values with those that follow from others put in."""
    autos = preset(str(given["data.name"]), str(given["data.split"]), str(given["model.name"]))
    concrete = {key: autos[key] if value == AUTO and key in autos else value for key, value in given.items()}
    # A faulty fidelity has a complaint of its own, which these shall not repeat.
    default = "fixed" if concrete["fidelity.default"] == "fixed" else "paper"
    for key in [key for key in concrete if key.startswith("fidelity.") and concrete[key] == ""]:
        concrete[key] = default
    if concrete["train.mask-fill"] == AUTO:
        concrete["train.mask-fill"] = "-inf" if concrete["fidelity.mask-fill"] == "fixed" else "zero"
    if concrete["server.optimizer"] == AUTO:
        concrete["server.optimizer"] = "momentum" if concrete["server.momentum"] else "none"
    if concrete["server.eta"] == AUTO:
        concrete["server.eta"] = ETA.get(str(concrete["server.optimizer"]), 1.0)
    if concrete["server.max-examples-ratio"] == AUTO:
        unequal = str(concrete["data.split"]).startswith("dirichlet")
        concrete["server.max-examples-ratio"] = 0.0 if unequal else Limits().examples_ratio
    return concrete


def _read(key: str, value: object) -> object:
    """Return a setting's value; say what was found and what was expected if it has none."""
    spec = SPECS[key]
    try:
        if not isinstance(value, bool | int | float | str):
            raise ValueError
        return spec.kind.read(value)
    except ConfigError as error:  # it says more than the kind can
        raise ConfigError(f"{key}: {error}") from error
    except ValueError as error:
        auto = f", or '{AUTO}'" if spec.default == AUTO else ""
        found = f"found {value!r} ({type(value).__name__})"
        raise ConfigError(f"{key}: {found}, expected {spec.kind.expected}{auto}") from error


def _assemble(values: Mapping[str, object]) -> Settings:
    made: dict[str, Any] = {}
    for group, kind in GROUPS.items():
        own = {name: values[key_of(group, name)] for name in _own(kind)}
        made |= {group: kind(**own)} if group else own
    return Settings(**made)


def _contradictions(settings: Settings, given: Mapping[str, object]) -> Iterator[str]:
    """Yield what no single setting shows."""
    name = settings.model.name
    if ":" not in name and name not in MODELS:
        yield f"model.name: found {name!r}, expected one of {', '.join(MODELS)}, 'module:function' or '{AUTO}'"
    for key in ("model.norm", "model.hidden"):
        if given[key] not in (AUTO, "", "none") and name in MODELS and not takes(name, key.partition(".")[2]):
            yield f"{key}: found {given[key]!r}, but the model {name} has no such option; expected '{AUTO}'"
    if settings.devices.deadline and not settings.devices.profile:
        yield f"devices.deadline: found {settings.devices.deadline:g}, expected devices.profile to name the devices too"
    if settings.sample.spare and (settings.devices.profile or settings.server.strategy != "heterofl"):
        why = (
            f"with devices.profile={settings.devices.profile} the clock does not say who comes first"
            if settings.devices.profile
            else f"with server.strategy={settings.server.strategy} clients learn from all others"
        )
        yield f"sample.spare: found {settings.sample.spare:g}, but {why}; expected 0"
    yield from _of_server(settings.server)
    if settings.run.resume and not settings.run.dir:
        yield "run.resume: found true, expected run.dir to name the folder of the run to go on with"


def _of_server(server: ServerSettings) -> Iterator[str]:
    """Yield what contradicts itself in what the server does."""
    if server.strategy == "hybrid" and server.shared != ALL:
        yield f"server.shared: found {','.join(server.shared)!r}, but server.strategy=hybrid averages all; expected '*'"
    if server.momentum and server.optimizer != "momentum":
        yield f"server.momentum: found {server.momentum:g}, but server.optimizer is {server.optimizer}; expected 0"
    if server.eta != 1 and server.optimizer == "none":
        yield f"server.eta: found {server.eta:g}, expected server.optimizer to name the optimiser too"
    if server.robust != "none" and server.strategy == "fedh2l":
        yield f"server.robust: found {server.robust!r}, but server.strategy=fedh2l averages nothing; expected 'none'"
