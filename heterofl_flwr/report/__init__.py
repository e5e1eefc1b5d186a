"""What a run shows and leaves behind: its folder, the lines it prints, tables, figures and one HTML page.

What draws is loaded on first use: it needs the extra ``report``, which a server without a run folder can do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from heterofl_flwr.errors import extra
from heterofl_flwr.report.callbacks import EarlyStopping, MLflow, TensorBoard, WandB
from heterofl_flwr.report.console import Console
from heterofl_flwr.report.summary import summary_table
from heterofl_flwr.runs import (
    Best,
    Checkpoint,
    Costs,
    LevelCost,
    ModelCosts,
    Recorder,
    RunFolder,
    load_model,
    save_models,
    seconds_to,
)

if TYPE_CHECKING:
    from heterofl_flwr.report.page import write_report

__all__ = [
    "Best",
    "Checkpoint",
    "Console",
    "Costs",
    "EarlyStopping",
    "LevelCost",
    "MLflow",
    "ModelCosts",
    "Recorder",
    "RunFolder",
    "TensorBoard",
    "WandB",
    "load_model",
    "save_models",
    "seconds_to",
    "summary_table",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Load what draws on first use (PEP 562)."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("report"):
        return import_module(f"{__name__}.page").write_report
