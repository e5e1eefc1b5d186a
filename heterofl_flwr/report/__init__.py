"""What a run shows and leaves behind: its folder, the lines it prints, tables, figures and one HTML page."""

from heterofl_flwr.report.callbacks import EarlyStopping, MLflow, TensorBoard, WandB
from heterofl_flwr.report.console import Console
from heterofl_flwr.report.page import write_report
from heterofl_flwr.report.plan_picture import draw_plans
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
