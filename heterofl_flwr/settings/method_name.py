"""Name of the federated learning method that the settings describe."""

from types import MappingProxyType

from heterofl_flwr.core.exchanged import ALL
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.server_stages import parse_stages
from heterofl_flwr.stages.scaffold import Scaffold

SLICES = MappingProxyType(
    {
        "prefix": "HeteroFL",
        "important": "FIARSE, structured",
        "rolling": "FedRolex",
        "random-level": "random slices by level",
        "random-client": "Federated Dropout",
    }
)
"""Name of the method by ``server.slice-rule``."""

INNER_LEVELS = MappingProxyType(
    {
        "ordered": "FjORD without distillation",
        "drawn": "FjORD",
        "sandwich": "HeteroFL with sandwich distillation",
        "all": "HeteroFL with in-place distillation",
    }
)
"""Name of the method by ``train.distill``."""

EXITS = MappingProxyType({"mutual": "DepthFL", "deepest": "ScaleFL", "last": "depth"})
"""Name of the method by ``train.exits``, for models of unequal depth."""


def method_name(settings: Settings) -> str:
    """Return the name of the method that the settings describe, such as FedRolex."""
    server = settings.server
    if server.strategy == "fedh2l":
        return "FedH2L (variant)"
    if server.shared != ALL:
        return "LG-FedAvg" if server.shared else "Standalone"
    if settings.train.distill != "none":
        return INNER_LEVELS[settings.train.distill]
    if settings.model.shrink != "width":
        return EXITS[settings.train.exits]
    if any(isinstance(stage, Scaffold) for stage in parse_stages(server.stages, load=False)):
        return "SCAFFOLD"
    if server.weights == "examples" and len(settings.mix.all_rates) == 1:
        return "FedAvg"
    if server.growth:
        return "FedGMR, structured"
    if server.by_level:
        return "NeFL, level parameters"
    return SLICES[server.slice_rule]


def run_title(settings: Settings) -> str:
    """Return method, data set and mix, such as ``FedRolex on digits, a1-e1``."""
    return f"{method_name(settings)} on {settings.data.name}, {settings.mix}"
