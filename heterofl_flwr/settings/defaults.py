"""Values of ``auto``: the published settings of each data set of the paper, and ours for other data."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.data.known import short_name
from heterofl_flwr.nn.depth import read_levels
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.value_types import AUTO, Flat

# Table 6 and the authors' code for the paper's data sets; the last column is for data sets that we do not know. Papers
# agree on less for the others: CIFAR100 is trained as CIFAR10 is, FEMNIST by a CNN.
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
"""The value of each setting that can be ``auto``, for data sets that we do not know."""

PRESETS: Mapping[str, Mapping[str, Flat]] = MappingProxyType(_TABLES)
"""The same for each data set that we know."""

NOT_IID: Mapping[str, Mapping[str, Flat]] = MappingProxyType(
    {
        "digits": {"num-rounds": 20},
        "mnist": {"num-rounds": 400, "train.milestones": "200"},
        **{name: {"num-rounds": 800, "train.milestones": "300,500"} for name in ("cifar10", "cifar100")},
    }
)
"""Values of ``auto`` for data that are not IID."""

CLIENTS: Mapping[str, int] = MappingProxyType({"digits": 20})
"""Default number of clients by data set; 100 for all others, as in the paper."""


def preset(data: str, split: str, model: str = AUTO) -> Mapping[str, Flat]:
    """Return the value of each setting that can be ``auto``; another model than the data set's has its own widths."""
    data = short_name(data)
    values = {**PRESETS.get(data, OTHER), **({} if split == "iid" else NOT_IID.get(data, {}))}
    if model not in (AUTO, values["model.name"]):
        values["model.hidden"] = ""
        values["model.norm"] = "sbn" if model_has(model, "norm") else "none"
    return values


def model_has(model: str, option: str) -> bool:
    """Whether a model of ours has an option."""
    return model in MODELS and option in inspect.signature(MODELS[model]).parameters


def options_of(model: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return those of the values that are for options which a model of ours has."""
    return {name: value for name, value in values.items() if model_has(model, name)}


def model_options(settings: Settings) -> dict[str, object]:
    """Return the options for ``build_model`` that are settings; what depends on the data is the caller's to add.

    A model of the user's own, ``module:function``, gets none.
    """
    model = settings.model
    options = {name: getattr(model, name) for name in ("hidden", "norm", "scaler")}
    options |= {"encoder_init": settings.fidelity, "global_rate": global_width(settings)}
    return options_of(model.name, {name: value for name, value in options.items() if value != ()})


def global_width(settings: Settings) -> float:
    """Return the width rate of the global model, by which the Scaler divides."""
    levels, rate = read_levels(settings.model.shrink), settings.mix.global_rate
    return rate if levels is None else levels[rate][0] if levels else 1.0


def architectures(settings: Settings) -> tuple[str, ...]:
    """Return the models' names where clients differ in them (``distill.models`` in FedH2L); else none."""
    return settings.distill.models if settings.server.strategy == "fedh2l" else ()


def with_architecture(settings: Settings, name: str) -> Settings:
    """Return settings with another model, at its own widths.

    It has the norm that is asked for, if it can have one; a setting made for a model without norm asks for none.
    """
    requested = settings.model.norm if model_has(settings.model.name, "norm") else "sbn"
    norm = requested if model_has(name, "norm") else "none"
    model = settings.model.model_copy(update={"name": name, "hidden": (), "norm": norm})
    return settings.model_copy(update={"model": model})
