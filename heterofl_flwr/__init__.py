"""Train one global model over clients of unequal size with Flower: HeteroFL, its baselines and its family.

The names below are loaded when they are first used, so ``import heterofl_flwr`` is cheap and
``import heterofl_flwr.core`` loads no Flower.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.adapters.lora import lora
    from heterofl_flwr.core.counting_mean import Aggregator
    from heterofl_flwr.core.fidelity import Fidelity
    from heterofl_flwr.core.levels import Mix
    from heterofl_flwr.core.plan import Plan
    from heterofl_flwr.core.robust import Robust
    from heterofl_flwr.elastic_models.elastic_model import elastic
    from heterofl_flwr.errors import HeteroFLError
    from heterofl_flwr.federation.evaluation import Evaluation
    from heterofl_flwr.federation.level_table import Levels
    from heterofl_flwr.federation.limits import Limits
    from heterofl_flwr.federation.options import multi_step
    from heterofl_flwr.federation.records import RoundCallback
    from heterofl_flwr.grids.devices import DeviceProfile, Devices
    from heterofl_flwr.grids.local import LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid
    from heterofl_flwr.grids.simulated import SimulatedDevices
    from heterofl_flwr.grids.windowed import Windowed
    from heterofl_flwr.nn.depth import shallow
    from heterofl_flwr.stages.moving_average import MovingAverage
    from heterofl_flwr.stages.privacy import Privacy
    from heterofl_flwr.stages.server_optimizer import Adagrad, Adam, Momentum, Yogi
    from heterofl_flwr.stages.stage import Stage
    from heterofl_flwr.strategies.fedh2l import FedH2L
    from heterofl_flwr.strategies.heterofl import HeteroFL

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
    "Levels",
    "Limits",
    "LocalGrid",
    "Mix",
    "Momentum",
    "MovingAverage",
    "Plan",
    "Privacy",
    "RayGrid",
    "Robust",
    "RoundCallback",
    "SimulatedDevices",
    "Stage",
    "Windowed",
    "Yogi",
    "__version__",
    "elastic",
    "lora",
    "multi_step",
    "shallow",
]

# Where each public name lies. A new one is added here, to __all__ and to the imports for type checkers.
_HOMES = {
    "adapters.lora": ("lora",),
    "core.counting_mean": ("Aggregator",),
    "core.fidelity": ("Fidelity",),
    "core.levels": ("Mix",),
    "core.plan": ("Plan",),
    "core.robust": ("Robust",),
    "elastic_models.elastic_model": ("elastic",),
    "errors": ("HeteroFLError",),
    "federation.evaluation": ("Evaluation",),
    "federation.level_table": ("Levels",),
    "federation.limits": ("Limits",),
    "federation.options": ("multi_step",),
    "stages.moving_average": ("MovingAverage",),
    "stages.privacy": ("Privacy",),
    "federation.records": ("RoundCallback",),
    "stages.server_optimizer": ("Adagrad", "Adam", "Momentum", "Yogi"),
    "stages.stage": ("Stage",),
    "grids.devices": ("DeviceProfile", "Devices"),
    "grids.local": ("LocalGrid",),
    "grids.ray_grid": ("RayGrid",),
    "grids.simulated": ("SimulatedDevices",),
    "grids.windowed": ("Windowed",),
    "nn.depth": ("shallow",),
    "strategies.fedh2l": ("FedH2L",),
    "strategies.heterofl": ("HeteroFL",),
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib import metadata  # not before __main__ has moved the current folder

        try:
            value: object = metadata.version("heterofl-flwr")
        except metadata.PackageNotFoundError:  # run from its source, never installed
            value = "0+unknown"
    elif module := next((module for module, names in _HOMES.items() if name in names), None):
        value = getattr(import_module(f"{__name__}.{module}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
