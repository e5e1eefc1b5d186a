"""Plan the jobs of a command as Hydra does it, and shrink them until they run in a second."""

from functools import cache

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode

from simulations.sweep.__main__ import CONF, register, translate
from simulations.sweep.job import Job, build_job, flat

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
def planned(*overrides: str) -> dict[str, Job]:
    """Return the jobs of a command by name.

    Hydra takes a tenth of a second to compose one, so each choice of groups is composed once, and plain values are put
    into it.
    """
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", translate(overrides), RunMode.MULTIRUN)
        sweeper = Plugins.instance()._instantiate(master.hydra.sweeper)
        texts = [f"{key}={value}" for key, value in sweeper.params.items()] + list(master.hydra.overrides.task)
        rows = sweeper.split_arguments(OverridesParser.create(loader).parse_overrides(texts), None)[0]
        keys = flat(loader.load_configuration("config", [], RunMode.RUN)).keys()
        parse = cache(OverridesParser.create().parse_override)

        @cache
        def compose(*groups: str) -> dict[str, object]:
            return flat(loader.load_sweep_config(master, list(groups)))

        def job(row: list[str]) -> Job:
            plain = {text for text in row if parse(text).key_or_group in keys and "${" not in text}
            values = {parse(text).key_or_group: parse(text).value() for text in plain}
            return build_job({**compose(*(text for text in row if text not in plain)), **values})

        return {own.name: own for own in map(job, rows)}
