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
    Deal,
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
    from heterofl_flwr.report.plan_picture import draw_plans

__all__ = [
    "Best",
    "Checkpoint",
    "Console",
    "Costs",
    "Deal",
    "EarlyStopping",
    "LevelCost",
    "MLflow",
    "ModelCosts",
    "Recorder",
    "RunFolder",
    "TensorBoard",
    "WandB",
    "draw_plans",
    "load_model",
    "save_models",
    "seconds_to",
    "summary_table",
    "write_report",
]

_DRAWING = {"draw_plans": "plan_picture", "write_report": "page"}


def __getattr__(name: str) -> object:
    """Load what draws on first use (PEP 562)."""
    if name not in _DRAWING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("report"):
        return getattr(import_module(f"{__name__}.{_DRAWING[name]}"), name)
