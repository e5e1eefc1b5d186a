"""What ``auto`` stands for: the published settings of each data set of the paper, and ours for other data."""

from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.data.load import HUB_NAMES
from heterofl_flwr.settings.kinds import AUTO, Flat
from heterofl_flwr.settings.model import takes

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
            "num-rounds": 5,
            "model.name": "cnn",
            "model.hidden": "32,64,128",
            "model.norm": "sbn",
            "train.lr": 0.05,
            "train.milestones": "",
            "train.epochs": 3,
            "train.batch-size": 10,
            "sample.fraction": 1.0,
            "evaluate.every": 1,
            "evaluate.levels": True,
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
        values["model.norm"] = "sbn" if takes(model, "norm") else "none"
    return values
