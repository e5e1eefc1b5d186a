"""Values that replace ``auto``: the paper's values for its data sets, and default values for other data sets."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.data.known import short_name
from heterofl_flwr.nn.depth import read_levels
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.value_types import AUTO, Flat

# The paper's data sets have the values of its Table 6 and of the authors' code, and CIFAR100 has those of CIFAR10.
# Papers do not agree on values for FEMNIST, so it has values for a CNN. The last column is for all other data sets.
_COLUMNS = ("digits", "mnist", "cifar10", "cifar100", "femnist", "wikitext2", "other")
_ROWS: Mapping[str, tuple[Flat, ...]] = {
    "num-rounds": (5, 200, 400, 400, 50, 200, 50),
    "model.name": ("cnn", "cnn", "preresnet18", "preresnet18", "cnn", "transformer", "cnn"),
    "model.hidden": ("32,64,128", *[""] * 6),
    "model.norm": ("sbn", "sbn", "sbn", "sbn", "sbn", "none", "sbn"),
    "train.lr": (0.05, 0.01, 0.1, 0.1, 0.05, 0.1, 0.05),
    "train.milestones": ("", "100", "150,250", "150,250", "", "50,100", ""),
    "train.epochs": (3, 5, 5, 5, 3, 1, 3),
    "train.batch-size": (10, 10, 10, 10, 10, 1, 10),
    "sample.fraction": (1.0, *[0.1] * 6),
    "evaluate.every": (1, 10, 10, 10, 5, 10, 5),
    "evaluate.levels": (True, "last", "last", "last", True, "last", True),
}
_TABLES = {name: {key: row[number] for key, row in _ROWS.items()} for number, name in enumerate(_COLUMNS)}

OTHER: Mapping[str, Flat] = MappingProxyType(_TABLES.pop("other"))
"""Values that replace ``auto`` for data sets without a preset."""

AUTOS = {*OTHER, "train.mask-fill"}
"""Settings whose default is ``auto``: a value that follows from other settings."""

PRESETS: Mapping[str, Mapping[str, Flat]] = MappingProxyType(_TABLES)
"""Values that replace ``auto``, by data set."""

NOT_IID: Mapping[str, Mapping[str, Flat]] = MappingProxyType(
    {
        "digits": {"num-rounds": 20},
        "mnist": {"num-rounds": 400, "train.milestones": "200"},
        **{name: {"num-rounds": 800, "train.milestones": "300,500"} for name in ("cifar10", "cifar100")},
    }
)
"""Changes to ``PRESETS`` for splits other than ``iid``."""

CLIENTS: Mapping[str, int] = MappingProxyType({"digits": 20})
"""Default number of clients by data set; 100 for all others, as in the paper."""


def preset(data: str, split: str, model: str = AUTO) -> Mapping[str, Flat]:
    """Return the values that replace ``auto`` for a data set, a split and a model."""
    data = short_name(data)
    values = {**PRESETS.get(data, OTHER), **({} if split == "iid" else NOT_IID.get(data, {}))}
    if model not in (AUTO, values["model.name"]):
        values["model.hidden"] = ""
        values["model.norm"] = "sbn" if model_has(model, "norm") else "none"
    return values


def resolve_autos(assigned: Mapping[str, object]) -> dict[str, object]:
    """Return the settings with ``auto`` replaced by values for the data set, split, model and fidelity."""
    autos = auto_values(assigned)
    return {key: autos.get(key, value) if value == AUTO else value for key, value in assigned.items()}


def auto_values(assigned: Mapping[str, object]) -> dict[str, Flat]:
    """Return the value that replaces ``auto`` in each setting that can be ``auto``, by key."""
    values = preset(str(assigned["data.name"]), str(assigned["data.split"]), str(assigned["model.name"]))
    return {**values, "train.mask-fill": "-inf" if assigned["fidelity"] == "fixed" else "zero"}


def model_has(model: str, option: str) -> bool:
    """Whether ``model`` is a model of this package that has the option ``option``."""
    return model in MODELS and option in inspect.signature(MODELS[model]).parameters


def options_of(model: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the entries of ``values`` that are options of ``model``."""
    return {name: value for name, value in values.items() if model_has(model, name)}


def model_options(settings: Settings) -> dict[str, object]:
    """Return the arguments of ``build_model`` that depend on the settings, not on the data."""
    model = settings.model
    options = {name: getattr(model, name) for name in ("hidden", "norm", "scaler")}
    options |= {"encoder_init": settings.fidelity, "global_rate": global_width(settings)}
    return options_of(model.name, {name: value for name, value in options.items() if value != ()})


def global_width(settings: Settings) -> float:
    """Return the width of the global model as a fraction of the width at rate 1."""
    levels, rate = read_levels(settings.model.shrink), settings.mix.global_rate
    return rate if levels is None else levels.get(rate, (1.0, 1.0))[0]


def with_architecture(settings: Settings, name: str) -> Settings:
    """Return the settings with the model ``name``, at its default widths.

    ``model.norm`` is unchanged if both the old and the new model have this option. If only the new model has it, the
    value becomes ``sbn``. If the new model lacks it, the value becomes ``none``.
    """
    requested = settings.model.norm if model_has(settings.model.name, "norm") else "sbn"
    norm = requested if model_has(name, "norm") else "none"
    model = settings.model.model_copy(update={"name": name, "hidden": (), "norm": norm})
    return settings.model_copy(update={"model": model})
