"""What ``auto`` stands for: the published settings of each data set of the paper, and ours for other data."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.data.load import HUB_NAMES
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.groups import Settings
from heterofl_flwr.settings.types import AUTO, Flat

EXCHANGES = ("fedh2l", "hybrid")
"""Values of ``server.strategy`` with which clients may differ in architecture."""


def model_has(model: str, option: str) -> bool:
    """Whether a model of ours has an option."""
    return model in MODELS and option in inspect.signature(MODELS[model]).parameters


def model_options(settings: Settings) -> dict[str, object]:
    """Return the options for ``build_model`` that are settings; what depends on the data is the caller's to add.

    A model of the user's own, ``module:function``, gets none.
    """
    options: dict[str, object] = {
        "hidden": settings.model.hidden,
        "norm": settings.model.norm,
        "scaler": settings.model.scaler,
        "encoder_init": settings.fidelity.encoder_init,
        "global_rate": settings.mix.global_rate,
    }
    own = settings.model.name
    return {name: value for name, value in options.items() if value != () and model_has(own, name)}


def architectures(settings: Settings) -> tuple[str, ...]:
    """Return the models' names where clients differ in them (``distill.models``); none where they do not."""
    return settings.distill.models if settings.server.strategy in EXCHANGES else ()


def with_architecture(settings: Settings, name: str) -> Settings:
    """Return settings with another model, at its own widths.

    It has the norm that is asked for, if it can have one; a setting made for a model without norm asks for none.
    """
    asked = settings.model.norm if model_has(settings.model.name, "norm") else "sbn"
    norm = asked if model_has(name, "norm") else "none"
    model = settings.model.model_copy(update={"name": name, "hidden": (), "norm": norm})
    return settings.model_copy(update={"model": model})


def client_settings(settings: Settings, partition: int) -> Settings:
    """Return settings with a client's own model; architectures are dealt in turns."""
    names = architectures(settings)
    return with_architecture(settings, names[partition % len(names)]) if names else settings


OTHER: Mapping[str, Flat] = MappingProxyType(
    {
        "num-rounds": 50,
        "model.name": "cnn",
        "model.hidden": "",
        "model.norm": "sbn",
        "train.lr": 0.05,
        "train.milestones": "",
        "train.epochs": 3,
        "train.batch-size": 10,
        "sample.fraction": 0.1,
        "evaluate.every": 5,
        "evaluate.levels": True,
    }
)
"""For data sets that we do not know."""

_PAPER: dict[str, Flat] = {
    "model.norm": "sbn",
    "model.hidden": "",
    "sample.fraction": 0.1,
    "evaluate.every": 10,
    "evaluate.levels": "last",
}

PRESETS: Mapping[str, Mapping[str, Flat]] = MappingProxyType(
    {
        "digits": {
            **OTHER,
            "num-rounds": 5,
            "model.hidden": "32,64,128",
            "sample.fraction": 1.0,
            "evaluate.every": 1,
        },
        # Table 6 and the authors' code.
        "mnist": {
            **_PAPER,
            "num-rounds": 200,
            "model.name": "cnn",
            "train.lr": 0.01,
            "train.milestones": "100",
            "train.epochs": 5,
            "train.batch-size": 10,
        },
        "cifar10": {
            **_PAPER,
            "num-rounds": 400,
            "model.name": "preresnet18",
            "train.lr": 0.1,
            "train.milestones": "150,250",
            "train.epochs": 5,
            "train.batch-size": 10,
        },
        "wikitext2": {
            **_PAPER,
            "num-rounds": 200,
            "model.name": "transformer",
            "model.norm": "none",
            "train.lr": 0.1,
            "train.milestones": "50,100",
            "train.epochs": 1,
            "train.batch-size": 1,
        },
    }
)
"""By data set: the value of each setting that can be ``auto``."""

NOT_IID: Mapping[str, Mapping[str, Flat]] = MappingProxyType(
    {
        "digits": {"num-rounds": 20},
        "mnist": {"num-rounds": 400, "train.milestones": "200"},
        "cifar10": {"num-rounds": 800, "train.milestones": "300,500"},
    }
)
"""What changes where the clients' data differ in kind."""

CLIENTS: Mapping[str, int] = MappingProxyType({"digits": 20})
"""How many clients ``heterofl run`` starts for a data set; for all others 100, as in the paper."""


def short_name(data: str) -> str:
    """Return our name of a data set that is named as on the hub."""
    return next((short for short, name in HUB_NAMES.items() if name == data), data)


def preset(data: str, split: str, model: str = AUTO) -> Mapping[str, Flat]:
    """Return the value of each setting that can be ``auto``; another model than the data set's has its own widths."""
    data = short_name(data)
    values = {**PRESETS.get(data, OTHER), **({} if split == "iid" else NOT_IID.get(data, {}))}
    if model not in (AUTO, values["model.name"]):
        values["model.hidden"] = ""
        values["model.norm"] = "sbn" if model_has(model, "norm") else "none"
    return values
