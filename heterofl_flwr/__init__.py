"""Train one global model over clients of unequal size with Flower: HeteroFL, its baselines and its family.

The names below are loaded when they are first used, so ``import heterofl_flwr`` is cheap and
``import heterofl_flwr.core`` loads no Flower.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.core.counting_mean import Aggregator
    from heterofl_flwr.core.fidelity import Fidelity
    from heterofl_flwr.core.levels import Mix
    from heterofl_flwr.core.plan import Plan
    from heterofl_flwr.core.robust import Robust
    from heterofl_flwr.elastic_models.build import elastic
    from heterofl_flwr.errors import HeteroFLError
    from heterofl_flwr.federation.evaluation import Evaluation
    from heterofl_flwr.federation.limits import Limits
    from heterofl_flwr.federation.nodes import Levels
    from heterofl_flwr.federation.options import Averaging, Sampling, Transfer
    from heterofl_flwr.federation.privacy import Privacy
    from heterofl_flwr.federation.records import RoundCallback
    from heterofl_flwr.federation.server_optimizer import Adagrad, Adam, Momentum, Yogi, multi_step
    from heterofl_flwr.grids.devices import DeviceProfile, Devices
    from heterofl_flwr.grids.local import LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid
    from heterofl_flwr.grids.simulated import SimulatedDevices
    from heterofl_flwr.grids.windowed import Windowed
    from heterofl_flwr.strategies.fedh2l import FedH2L
    from heterofl_flwr.strategies.heterofl import HeteroFL
    from heterofl_flwr.strategies.hybrid import Hybrid

    __version__: str

__all__ = [
    "Adagrad",
    "Adam",
    "Aggregator",
    "Averaging",
    "DeviceProfile",
    "Devices",
    "Evaluation",
    "FedH2L",
    "Fidelity",
    "HeteroFL",
    "HeteroFLError",
    "Hybrid",
    "Levels",
    "Limits",
    "LocalGrid",
    "Mix",
    "Momentum",
    "Plan",
    "Privacy",
    "RayGrid",
    "Robust",
    "RoundCallback",
    "Sampling",
    "SimulatedDevices",
    "Transfer",
    "Windowed",
    "Yogi",
    "__version__",
    "elastic",
    "multi_step",
]

# Where each public name lives. A new one is a line here, and its name in __all__ and in the imports for type checkers.
_HOMES = {
    "Adagrad": "heterofl_flwr.federation.server_optimizer",
    "Adam": "heterofl_flwr.federation.server_optimizer",
    "Aggregator": "heterofl_flwr.core.counting_mean",
    "Averaging": "heterofl_flwr.federation.options",
    "DeviceProfile": "heterofl_flwr.grids.devices",
    "Devices": "heterofl_flwr.grids.devices",
    "Evaluation": "heterofl_flwr.federation.evaluation",
    "FedH2L": "heterofl_flwr.strategies.fedh2l",
    "Fidelity": "heterofl_flwr.core.fidelity",
    "HeteroFL": "heterofl_flwr.strategies.heterofl",
    "HeteroFLError": "heterofl_flwr.errors",
    "Hybrid": "heterofl_flwr.strategies.hybrid",
    "Levels": "heterofl_flwr.federation.nodes",
    "Limits": "heterofl_flwr.federation.limits",
    "LocalGrid": "heterofl_flwr.grids.local",
    "Mix": "heterofl_flwr.core.levels",
    "Momentum": "heterofl_flwr.federation.server_optimizer",
    "Plan": "heterofl_flwr.core.plan",
    "RayGrid": "heterofl_flwr.grids.ray_grid",
    "Robust": "heterofl_flwr.core.robust",
    "RoundCallback": "heterofl_flwr.federation.records",
    "Privacy": "heterofl_flwr.federation.privacy",
    "Sampling": "heterofl_flwr.federation.options",
    "SimulatedDevices": "heterofl_flwr.grids.simulated",
    "Transfer": "heterofl_flwr.federation.options",
    "Windowed": "heterofl_flwr.grids.windowed",
    "Yogi": "heterofl_flwr.federation.server_optimizer",
    "elastic": "heterofl_flwr.elastic_models.build",
    "multi_step": "heterofl_flwr.federation.server_optimizer",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        value: object = _version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    try:
        return metadata.version("heterofl-flwr")
    except metadata.PackageNotFoundError:  # run from its source, never installed
        return "0+unknown"
