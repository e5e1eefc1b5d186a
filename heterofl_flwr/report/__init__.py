"""What a run leaves behind: its folder, the lines it prints, tables, figures and one HTML page.

The names below are loaded when they are first used: a client keeps files, and needs none of what draws.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.report.console import Console
    from heterofl_flwr.report.early_stopping import EarlyStopping
    from heterofl_flwr.report.html import write_report
    from heterofl_flwr.report.plan_picture import draw_plans
    from heterofl_flwr.report.tables import summary_table
    from heterofl_flwr.report.trackers import MLflow, TensorBoard, WandB
    from heterofl_flwr.runs.checkpoint import Best, Checkpoint
    from heterofl_flwr.runs.class_split import Deal
    from heterofl_flwr.runs.costs import Costs, LevelCost, ModelCosts
    from heterofl_flwr.runs.folder import RunFolder
    from heterofl_flwr.runs.metrics import seconds_to
    from heterofl_flwr.runs.models import load_model, save_models
    from heterofl_flwr.runs.recorder import Recorder

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

_HOMES = {
    "Best": "heterofl_flwr.runs.checkpoint",
    "Checkpoint": "heterofl_flwr.runs.checkpoint",
    "Console": "heterofl_flwr.report.console",
    "Costs": "heterofl_flwr.runs.costs",
    "Deal": "heterofl_flwr.runs.class_split",
    "EarlyStopping": "heterofl_flwr.report.early_stopping",
    "LevelCost": "heterofl_flwr.runs.costs",
    "MLflow": "heterofl_flwr.report.trackers",
    "ModelCosts": "heterofl_flwr.runs.costs",
    "Recorder": "heterofl_flwr.runs.recorder",
    "RunFolder": "heterofl_flwr.runs.folder",
    "TensorBoard": "heterofl_flwr.report.trackers",
    "WandB": "heterofl_flwr.report.trackers",
    "draw_plans": "heterofl_flwr.report.plan_picture",
    "load_model": "heterofl_flwr.runs.models",
    "save_models": "heterofl_flwr.runs.models",
    "seconds_to": "heterofl_flwr.runs.metrics",
    "summary_table": "heterofl_flwr.report.tables",
    "write_report": "heterofl_flwr.report.html",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
