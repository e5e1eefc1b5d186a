"""Output of a run: terminal lines, tables, figures, an HTML page, and callbacks."""

from pathlib import Path

from heterofl_flwr.common.errors import extra
from heterofl_flwr.report.callbacks import MLflow, TensorBoard, WandB
from heterofl_flwr.report.console import Console
from heterofl_flwr.report.monitor import Monitor
from heterofl_flwr.report.summary import summary_table
from heterofl_flwr.runs.costs import Costs, ModelCosts
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.models import load_model
from heterofl_flwr.runs.recorder import Recorder
from heterofl_flwr.runs.scores import seconds_to

__all__ = [
    "Console",
    "Costs",
    "MLflow",
    "ModelCosts",
    "Monitor",
    "Recorder",
    "RunFolder",
    "TensorBoard",
    "WandB",
    "load_model",
    "seconds_to",
    "summary_table",
    "write_report",
]


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into the folder of a run; return the page's path."""
    with extra("report"):
        from heterofl_flwr.report.page import write_page
    return write_page(folder if isinstance(folder, RunFolder) else RunFolder(folder))
