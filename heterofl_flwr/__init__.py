"""Train one global model over clients of unequal size with Flower: HeteroFL, its baselines and its family.

The names below are loaded when they are first used, so ``import heterofl_flwr`` is cheap and
``import heterofl_flwr.core`` loads no Flower.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.adapters.lora import lora as lora
    from heterofl_flwr.common.errors import HeteroFLError as HeteroFLError
    from heterofl_flwr.core.aggregation import Aggregation as Aggregation
    from heterofl_flwr.core.fidelity import Fidelity as Fidelity
    from heterofl_flwr.core.levels import Mix as Mix
    from heterofl_flwr.core.robust import Robust as Robust
    from heterofl_flwr.core.slice_plan import Plan as Plan
    from heterofl_flwr.elastic_models.elastic_model import elastic as elastic
    from heterofl_flwr.federation.admission import Limits as Limits
    from heterofl_flwr.federation.callbacks import RoundCallback as RoundCallback
    from heterofl_flwr.federation.evaluation import Evaluation as Evaluation
    from heterofl_flwr.federation.options import Averaging as Averaging
    from heterofl_flwr.federation.options import Slicing as Slicing
    from heterofl_flwr.federation.options import Training as Training
    from heterofl_flwr.federation.options import multi_step as multi_step
    from heterofl_flwr.federation.sampling import Sampling as Sampling
    from heterofl_flwr.grids.devices import DeviceProfile as DeviceProfile
    from heterofl_flwr.grids.devices import Devices as Devices
    from heterofl_flwr.grids.local import LocalGrid as LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid as RayGrid
    from heterofl_flwr.grids.simulated import SimulatedDevices as SimulatedDevices
    from heterofl_flwr.grids.windowed import Windowed as Windowed
    from heterofl_flwr.nn.depth import shallow as shallow
    from heterofl_flwr.nn.penalty import Quadratic as Quadratic
    from heterofl_flwr.stages.asynchronous import Buffered as Buffered
    from heterofl_flwr.stages.client_stage import ClientContext as ClientContext
    from heterofl_flwr.stages.client_stage import ClientStage as ClientStage
    from heterofl_flwr.stages.client_stage import Outgoing as Outgoing
    from heterofl_flwr.stages.client_stage import client_stage as client_stage
    from heterofl_flwr.stages.feddyn import FedDyn as FedDyn
    from heterofl_flwr.stages.moving_average import MovingAverage as MovingAverage
    from heterofl_flwr.stages.privacy_accountant import Privacy as Privacy
    from heterofl_flwr.stages.scaffold import Scaffold as Scaffold
    from heterofl_flwr.stages.server_optimizer import Adagrad as Adagrad
    from heterofl_flwr.stages.server_optimizer import Adam as Adam
    from heterofl_flwr.stages.server_optimizer import Momentum as Momentum
    from heterofl_flwr.stages.server_optimizer import Yogi as Yogi
    from heterofl_flwr.stages.server_stage import Needs as Needs
    from heterofl_flwr.stages.server_stage import RoundContext as RoundContext
    from heterofl_flwr.stages.server_stage import ServerStage as ServerStage
    from heterofl_flwr.stages.server_stage import StatefulStage as StatefulStage
    from heterofl_flwr.stages.server_stage import Update as Update
    from heterofl_flwr.strategies.fedh2l import FedH2L as FedH2L
    from heterofl_flwr.strategies.heterofl import HeteroFL as HeteroFL
    from heterofl_flwr.training.distill import DistillOptions as DistillOptions

    __version__: str

# Where each public name lies. A new one is added here and to the imports for type checkers.
_HOMES = {
    "Adagrad": "stages.server_optimizer",
    "Adam": "stages.server_optimizer",
    "Aggregation": "core.aggregation",
    "Averaging": "federation.options",
    "Buffered": "stages.asynchronous",
    "ClientContext": "stages.client_stage",
    "ClientStage": "stages.client_stage",
    "DeviceProfile": "grids.devices",
    "Devices": "grids.devices",
    "DistillOptions": "training.distill",
    "Evaluation": "federation.evaluation",
    "FedDyn": "stages.feddyn",
    "FedH2L": "strategies.fedh2l",
    "Fidelity": "core.fidelity",
    "HeteroFL": "strategies.heterofl",
    "HeteroFLError": "common.errors",
    "Limits": "federation.admission",
    "LocalGrid": "grids.local",
    "Mix": "core.levels",
    "Momentum": "stages.server_optimizer",
    "MovingAverage": "stages.moving_average",
    "Needs": "stages.server_stage",
    "Outgoing": "stages.client_stage",
    "Plan": "core.slice_plan",
    "Privacy": "stages.privacy_accountant",
    "Quadratic": "nn.penalty",
    "RayGrid": "grids.ray_grid",
    "Robust": "core.robust",
    "RoundCallback": "federation.callbacks",
    "RoundContext": "stages.server_stage",
    "Sampling": "federation.sampling",
    "Scaffold": "stages.scaffold",
    "ServerStage": "stages.server_stage",
    "SimulatedDevices": "grids.simulated",
    "Slicing": "federation.options",
    "StatefulStage": "stages.server_stage",
    "Training": "federation.options",
    "Update": "stages.server_stage",
    "Windowed": "grids.windowed",
    "Yogi": "stages.server_optimizer",
    "client_stage": "stages.client_stage",
    "elastic": "elastic_models.elastic_model",
    "lora": "adapters.lora",
    "multi_step": "federation.options",
    "shallow": "nn.depth",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib import metadata  # not before __main__ has moved the current folder

        try:
            value: object = metadata.version("heterofl-flwr")
        except metadata.PackageNotFoundError:  # run from its source, never installed
            value = "0+unknown"
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
