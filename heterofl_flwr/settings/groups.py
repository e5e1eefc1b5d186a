"""Every setting of a run, once: its name, type, default, what it can be and what it means.

A field's key in a run config is the name of its group and its own, in kebab-case: ``train.batch_size`` is
``train.batch-size``. The fields of ``Settings`` itself have no prefix.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.settings import kinds
from heterofl_flwr.settings.kinds import AUTO, Setting
from heterofl_flwr.settings.run import DevicesSettings, EngineSettings, EvaluateSettings, RunSettings
from heterofl_flwr.settings.server import DistillSettings, PrivacySettings, ServerSettings
from heterofl_flwr.settings.training import (
    DataSettings,
    FidelitySettings,
    ModelSettings,
    SampleSettings,
    TrainSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a run, read and checked; every value is concrete."""

    mix: Annotated[Mix, Setting("a1-b1-c1-d1-e1", kinds.mix(), "levels and how many parts of the clients have each")]
    assignment: Annotated[
        Literal["fix", "dynamic"],
        Setting("fix", kinds.choice("fix", "dynamic"), "levels stay with their clients, or are drawn anew each round"),
    ]
    num_rounds: Annotated[int, Setting(AUTO, kinds.integer(1), "rounds of the run")]
    seed: Annotated[int, Setting(0, kinds.integer(0), "what every random draw depends on")]
    fidelity: FidelitySettings
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    sample: SampleSettings
    server: ServerSettings
    privacy: PrivacySettings
    distill: DistillSettings
    evaluate: EvaluateSettings
    engine: EngineSettings
    devices: DevicesSettings
    run: RunSettings
