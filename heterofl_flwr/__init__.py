"""Train one global model over clients of unequal size with Flower: HeteroFL, its baselines and its family.

The names below are loaded when they are first used, so ``import heterofl_flwr`` is cheap and
``import heterofl_flwr.core`` loads no Flower.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.core.aggregate import Aggregator
    from heterofl_flwr.core.fidelity import Fidelity
    from heterofl_flwr.core.levels import Mix
    from heterofl_flwr.core.plan import Plan
    from heterofl_flwr.core.robust import Robust
    from heterofl_flwr.errors import HeteroFLError
    from heterofl_flwr.grids.devices import DeviceProfile, Devices
    from heterofl_flwr.grids.local import LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid
    from heterofl_flwr.grids.simulated import SimulatedDevices
    from heterofl_flwr.grids.windowed import Windowed
    from heterofl_flwr.methods.callbacks import RoundCallback
    from heterofl_flwr.methods.evaluation import Evaluation
    from heterofl_flwr.methods.fedh2l import FedH2L
    from heterofl_flwr.methods.heterofl import HeteroFL
    from heterofl_flwr.methods.hybrid import Hybrid
    from heterofl_flwr.methods.level_table import Levels
    from heterofl_flwr.methods.limits import Limits
    from heterofl_flwr.methods.privacy import Privacy
    from heterofl_flwr.methods.schedule import multi_step
    from heterofl_flwr.methods.server_optimizer import Adagrad, Adam, Momentum, Yogi
    from heterofl_flwr.slicing.build import elastic

    __version__: str

__all__ = [
    "Adagrad",
    "Adam",
    "Aggregator",
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
    "SimulatedDevices",
    "Windowed",
    "Yogi",
    "__version__",
    "elastic",
    "multi_step",
]

# Where each public name lives. A new one is a line here, and its name in __all__ and in the imports for type checkers.
_HOMES = {
    "Adagrad": "heterofl_flwr.methods.server_optimizer",
    "Adam": "heterofl_flwr.methods.server_optimizer",
    "Aggregator": "heterofl_flwr.core.aggregate",
    "DeviceProfile": "heterofl_flwr.grids.devices",
    "Devices": "heterofl_flwr.grids.devices",
    "Evaluation": "heterofl_flwr.methods.evaluation",
    "FedH2L": "heterofl_flwr.methods.fedh2l",
    "Fidelity": "heterofl_flwr.core.fidelity",
    "HeteroFL": "heterofl_flwr.methods.heterofl",
    "HeteroFLError": "heterofl_flwr.errors",
    "Hybrid": "heterofl_flwr.methods.hybrid",
    "Levels": "heterofl_flwr.methods.level_table",
    "Limits": "heterofl_flwr.methods.limits",
    "LocalGrid": "heterofl_flwr.grids.local",
    "Mix": "heterofl_flwr.core.levels",
    "Momentum": "heterofl_flwr.methods.server_optimizer",
    "Plan": "heterofl_flwr.core.plan",
    "RayGrid": "heterofl_flwr.grids.ray_grid",
    "Robust": "heterofl_flwr.core.robust",
    "RoundCallback": "heterofl_flwr.methods.callbacks",
    "Privacy": "heterofl_flwr.methods.privacy",
    "SimulatedDevices": "heterofl_flwr.grids.simulated",
    "Windowed": "heterofl_flwr.grids.windowed",
    "Yogi": "heterofl_flwr.methods.server_optimizer",
    "elastic": "heterofl_flwr.slicing.build",
    "multi_step": "heterofl_flwr.methods.schedule",
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
