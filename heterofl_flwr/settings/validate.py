"""Conversion between ``Settings`` and a run config with dotted keys."""

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import expected
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.settings.auto_values import AUTOS, auto_values, resolve_autos
from heterofl_flwr.settings.contradictions import find_contradictions, unused_rules
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.value_types import AUTO, Flat, Group
from heterofl_flwr.settings.without_torch import Setting

GroupType = TypeVar("GroupType", bound=Group)


INCIDENTAL = (
    *("data.root", "sample.min-nodes", "sample.wait", "engine.device", "engine.window", "engine.timeout"),
    *("run.dir", "run.resume", "run.callbacks", "run.checkpoint-every", "run.metric", "run.metrics-address", "run.log"),
)
"""Settings that change no result."""


def fields_of(group: Any) -> Mapping[str, FieldInfo]:
    """Return the fields of a group class by name; empty for any other value."""
    fields = getattr(group, "__pydantic_fields__", {}) if isinstance(group, type) else {}
    return {name: field for name, field in fields.items() if not field.exclude}


def read_specs(group: Any, prefix: str = "") -> dict[str, Setting]:
    """Return all settings of a group class by dotted key."""
    specs: dict[str, Setting] = {}
    for field in fields_of(group).values():
        if fields_of(field.annotation):
            specs |= read_specs(field.annotation, f"{field.alias}.")
            continue
        key, default = f"{prefix}{field.alias}", field.get_default(call_default_factory=True)
        if isinstance(default, tuple | dict | Mix):
            default = str(default) if isinstance(default, Mix) else ",".join(default)
        default, meaning = AUTO if key in AUTOS else default, " ".join((field.description or "").split())
        specs[key] = Setting(key, default, default, meaning, expected(field))
    return specs


SPECS: Mapping[str, Setting] = MappingProxyType(read_specs(Settings))
"""All settings by key."""

DEFAULTS: Mapping[str, Flat] = MappingProxyType({key: spec.default for key, spec in SPECS.items()})
"""Default value of each setting by key."""


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as a flat dictionary with dotted keys; raise ``ConfigError`` for a key that occurs twice.

    ``{"train.lr": 0.1, "train": {"lr": 0.2}}`` has the key ``train.lr`` twice.
    """
    flat: dict[str, object] = {}
    for name, value in nested.items():
        part = flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        for key in flat.keys() & part.keys():
            group, _, field = key.rpartition(".")
            raise ConfigError(f"{key!r} is set twice, by this name and as {field!r} in {group!r}; expected the second")
        flat |= part
    return flat


def from_flat(mapping: Mapping[str, object]) -> Settings:
    """Return the settings of a run config; raise one ``ConfigError`` that lists all faults."""
    assigned = {**DEFAULTS, **{key: value for key, value in mapping.items() if key in SPECS}}
    settings, faults = validate(Settings, resolve_autos(assigned), SPECS)
    faults = unknown_settings(mapping, SPECS) + faults
    if settings is not None and not faults:
        faults = find_contradictions(settings, assigned, DEFAULTS)
    if settings is None or faults:
        several = f"{len(faults)} settings are not usable:\n  " if len(faults) > 1 else ""
        raise ConfigError(several + "\n  ".join(faults))
    return settings.model_copy(update={"mix": settings.mix.with_global_rate(settings.global_rate)})


def unused_settings(mapping: Mapping[str, object]) -> set[str]:
    """Return the keys of the settings that have no effect, whatever their values, because of another setting."""
    assigned = {**DEFAULTS, **{key: value for key, value in mapping.items() if key in SPECS}}
    settings, _ = validate(Settings, resolve_autos(assigned), SPECS)
    rules = unused_rules(settings, assigned, DEFAULTS) if settings is not None else ()
    return {key for key, _, _ in rules}


def to_flat(settings: Settings) -> dict[str, Flat]:
    """Return settings as a run config; the inverse of ``from_flat``."""
    return flatten(settings.model_dump(by_alias=True))


def usual_values(settings: Mapping[str, object]) -> dict[str, Flat]:
    """Return the default of each setting for the data set, split, model and fidelity in ``settings``."""
    return {**DEFAULTS, **auto_values({**DEFAULTS, **settings})}


def accepts(key: str, value: object) -> bool:
    """Whether ``value`` is valid for the setting ``key`` if all other settings have their defaults."""
    return not validate(Settings, resolve_autos({**DEFAULTS, key: value}), SPECS)[1]


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file by dotted key."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; expected a TOML file of settings") from error


def _read_value(text: str) -> object:
    """Parse a text as a TOML value; return the text itself if it is no TOML value."""
    try:
        (value,) = tomllib.loads(f"value = {text}").values()  # ValueError for a text with a second assignment
    except ValueError:
        return text
    return value


def read_assignments(texts: Sequence[str], settings: Collection[str] = SPECS) -> dict[str, Flat]:
    """Return the settings in texts of the form ``key=value``, with TOML values or plain text.

    A TOML value that is invalid for its setting, if this is one of ``settings``, is read as plain text.
    """
    assigned: dict[str, Flat] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        key, written = key.strip(), written.strip()
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected key=value, such as train.lr=0.05")
        value = _read_value(written)
        is_text = key in settings and not accepts(key, value) and accepts(key, written)
        assigned[key] = value if isinstance(value, bool | int | float | str) and not is_text else written
    return assigned


def unknown_settings(keys: Iterable[str], settings: Collection[str]) -> list[str]:
    """Return an error message for each unknown key, with suggestions of similar names."""
    faults = []
    for key in (key for key in keys if key not in settings):
        # A key with a missing or wrong group may differ from the right key in many letters.
        near = [name for name in settings if name.rpartition(".")[2] == key.rpartition(".")[2]]
        near = near or get_close_matches(key, settings, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else "'heterofl settings' lists them all"
        hint = "sweeps have methods by name: heterofl sweep method=NAME" if key == "method" else hint
        faults.append(f"{key}: no setting has this name; {hint}")
    return faults


def validate(
    group: type[GroupType], flat: Mapping[str, object], specs: Mapping[str, Setting]
) -> tuple[GroupType | None, list[str]]:
    """Return the group that a flat mapping describes, and a list of error messages.

    If a value is invalid, the group is None.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    try:
        return group.model_validate(nested), []
    except ValidationError as error:
        causes = {}
        for entry in error.errors(include_url=False):
            places = ".".join(map(str, entry["loc"][:2])), str(entry["loc"][0])
            key = next((key for key in places if key in specs), places[1])  # else a group of contradicting options
            causes[key] = entry.get("ctx", {}).get("error")
    return None, [
        f"{key}: {cause}" if isinstance(cause, ConfigError) else specs[key].not_expected(flat[key])
        for key, cause in causes.items()
    ]
