"""Plan the jobs of a command as Hydra lets the sweeper do it, and shrink them until they run in a second."""

from functools import cache

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from simulations.sweep.__main__ import CONF
from simulations.sweep.plan import Planned, plan

SHRUNKEN = (
    "num-rounds=2",
    "train.epochs=1",
    "model.hidden='4,8'",
    "evaluate.levels=false",
    "engine.name=plain",
    "engine.parallel=1",
    "report=lean",
)
"""For digits: two rounds of a second in this process."""

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@cache
def planned(*overrides: str) -> dict[str, Planned]:
    """Return the jobs of a command by name."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        return plan(loader, master, overrides)
