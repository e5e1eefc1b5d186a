"""What a run leaves behind: its folder, the lines it prints, tables, figures and one HTML page."""

from heterofl_flwr.report.checkpoint import Best, Checkpoint
from heterofl_flwr.report.console import Console
from heterofl_flwr.report.costs import Costs, LevelCost, ModelCosts
from heterofl_flwr.report.deal import Deal
from heterofl_flwr.report.early_stopping import EarlyStopping
from heterofl_flwr.report.html import write_report
from heterofl_flwr.report.models import save_models
from heterofl_flwr.report.plan_picture import draw_plans
from heterofl_flwr.report.recorder import Recorder
from heterofl_flwr.report.run_folder import RunFolder
from heterofl_flwr.report.tables import summary_table
from heterofl_flwr.report.tensorboard import TensorBoard
from heterofl_flwr.report.trackers import MLflow, WandB

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
    "save_models",
    "summary_table",
    "write_report",
]
