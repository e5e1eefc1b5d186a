"""Federated learning with Flower: clients of unequal capacity train one global model.

Public names are loaded on first use, so that ``import heterofl_flwr.core`` does not load Flower.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.adapters.lora import lora as lora
    from heterofl_flwr.common.errors import HeteroFLError as HeteroFLError
    from heterofl_flwr.core.aggregation import Aggregation as Aggregation
    from heterofl_flwr.core.fidelity import Fidelity as Fidelity
    from heterofl_flwr.core.mix import Mix as Mix
    from heterofl_flwr.core.robust import Robust as Robust
    from heterofl_flwr.core.slice_plan import Plan as Plan
    from heterofl_flwr.elastic_models.elastic_model import elastic as elastic
    from heterofl_flwr.federation.callbacks import (
        Progress as Progress,
        RoundCallback as RoundCallback,
        RunState as RunState,
    )
    from heterofl_flwr.federation.limits import Limits as Limits
    from heterofl_flwr.federation.options import (
        Averaging as Averaging,
        Evaluation as Evaluation,
        Slicing as Slicing,
        Training as Training,
    )
    from heterofl_flwr.federation.round_record import RoundRecord as RoundRecord
    from heterofl_flwr.federation.sampling import Sampling as Sampling
    from heterofl_flwr.grids.device_costs import DeviceProfile as DeviceProfile, Devices as Devices
    from heterofl_flwr.grids.local import LocalGrid as LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid as RayGrid
    from heterofl_flwr.grids.simulated_devices import SimulatedDevices as SimulatedDevices
    from heterofl_flwr.grids.windowed import Windowed as Windowed
    from heterofl_flwr.nn.depth import shallow as shallow
    from heterofl_flwr.nn.penalty import Quadratic as Quadratic
    from heterofl_flwr.stages.asynchronous import Buffered as Buffered
    from heterofl_flwr.stages.client_stage import (
        ClientContext as ClientContext,
        ClientStage as ClientStage,
        Outgoing as Outgoing,
        client_stage as client_stage,
    )
    from heterofl_flwr.stages.feddyn import FedDyn as FedDyn
    from heterofl_flwr.stages.privacy_accountant import Privacy as Privacy
    from heterofl_flwr.stages.scaffold import Scaffold as Scaffold
    from heterofl_flwr.stages.secure_sum import SecureSum as SecureSum
    from heterofl_flwr.stages.server_optimizer import (
        Adagrad as Adagrad,
        Adam as Adam,
        Momentum as Momentum,
        MovingAverage as MovingAverage,
        Nesterov as Nesterov,
        Yogi as Yogi,
    )
    from heterofl_flwr.stages.server_stage import (
        Needs as Needs,
        RoundContext as RoundContext,
        ServerStage as ServerStage,
        StatefulStage as StatefulStage,
        Update as Update,
    )
    from heterofl_flwr.strategies.fedh2l import FedH2L as FedH2L
    from heterofl_flwr.strategies.heterofl import HeteroFL as HeteroFL
    from heterofl_flwr.training.fedh2l import DistillOptions as DistillOptions

    __version__: str

# Module of each public name. Add a new name here, and to the imports for type checkers above.
_HOMES = {
    name: module
    for module, names in {
        "adapters.lora": "lora",
        "common.errors": "HeteroFLError",
        "core.aggregation": "Aggregation",
        "core.fidelity": "Fidelity",
        "core.mix": "Mix",
        "core.robust": "Robust",
        "core.slice_plan": "Plan",
        "elastic_models.elastic_model": "elastic",
        "federation.callbacks": "Progress RoundCallback RunState",
        "federation.limits": "Limits",
        "federation.options": "Averaging Evaluation Slicing Training",
        "federation.round_record": "RoundRecord",
        "federation.sampling": "Sampling",
        "grids.device_costs": "DeviceProfile Devices",
        "grids.local": "LocalGrid",
        "grids.ray_grid": "RayGrid",
        "grids.simulated_devices": "SimulatedDevices",
        "grids.windowed": "Windowed",
        "nn.depth": "shallow",
        "nn.penalty": "Quadratic",
        "stages.asynchronous": "Buffered",
        "stages.client_stage": "ClientContext ClientStage Outgoing client_stage",
        "stages.feddyn": "FedDyn",
        "stages.privacy_accountant": "Privacy",
        "stages.scaffold": "Scaffold",
        "stages.secure_sum": "SecureSum",
        "stages.server_optimizer": "Adagrad Adam Momentum MovingAverage Nesterov Yogi",
        "stages.server_stage": "Needs RoundContext ServerStage StatefulStage Update",
        "strategies.fedh2l": "FedH2L",
        "strategies.heterofl": "HeteroFL",
        "training.fedh2l": "DistillOptions",
    }.items()
    for name in names.split()
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib import metadata  # not at the top: __main__ must first take the current folder off sys.path

        try:
            value: object = metadata.version("heterofl-flwr")
        except metadata.PackageNotFoundError:  # a source checkout that is not installed
            value = "0+unknown"
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
