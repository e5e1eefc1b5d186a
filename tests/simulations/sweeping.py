"""Plan the jobs of a command as Hydra does it, shrink them until they run in a second, and run them in a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from heterofl_flwr import RoundCallback
from heterofl_flwr.app.sweep.blocks import combine_blocks
from heterofl_flwr.app.sweep.command import CONF
from heterofl_flwr.app.sweep.job import Job, build_job, flat

SHRUNKEN = (
    "num-rounds=2",
    "train.epochs=1",
    "train.batch-size=50",
    "model.hidden='4,8'",
    "evaluate.levels=false",
    "engine.name=plain",
    "engine.parallel=1",
    "report=lean",
    "logger=none",
)
"""For digits: two rounds of a second in this process."""

LONGEST = 600.0
"""Seconds that a process has."""

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


_parse = cache(OverridesParser.create().parse_override)


@cache
def composed(*groups: str) -> Mapping[str, object]:
    """Return the configuration of some choices of groups, with dotted keys; Hydra takes 0.2 s to compose one."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return flat(compose("config", list(groups)))


@cache
def merged(*groups: str) -> Mapping[str, object]:
    """Return what ``composed`` returns (as test_conf.py shows), with fewer configurations that Hydra has to compose."""
    usual, of_data = composed(), [text for text in groups if text.partition("=")[0] in ("data", "split", "model")]
    found = {**usual}
    for part in (*map(composed, of_data), composed(*(text for text in groups if text not in of_data))):
        found |= {key: value for key, value in part.items() if value != usual[key]}
    return found


def job(*overrides: str, path: Path = Path()) -> Job:
    """Return the job of some overrides; plain values are put into the configuration of their choice of groups."""
    plain = [text for text in overrides if _parse(text).key_or_group in composed() and "${" not in text]
    values = {_parse(text).key_or_group: _parse(text).value() for text in plain}
    return replace(build_job({**merged(*(text for text in overrides if text not in plain)), **values}), path=path)


@cache
def planned(*overrides: str) -> dict[str, Job]:
    """Return the jobs of a command by name: an experiment says which rows there are, and nothing else."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        sweeper, parser = master.hydra.sweeper, OverridesParser.create(loader)
        rows = combine_blocks(parser, sweeper.blocks, sweeper.params, master.hydra.overrides.task)
    jobs = (job(*(text for text in row if not text.startswith(("experiment=", "debug=")))) for row in rows)
    return {own.name: own for own in jobs}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in a session of its own, so that nothing but it is killed."""
    command = [sys.executable, "-m", "heterofl_flwr", "sweep", "-m", f"folder={folder}", *arguments]
    environment = {**os.environ, PLACE: str(folder)}
    return subprocess.Popen(
        command,
        cwd=CONF.parent,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status of a command, and all that it has printed."""
    out, _ = process.communicate(timeout=LONGEST)
    return process.returncode, out


def stamps(path: Path) -> dict[Path, int]:
    """Return when each file of runs was written, without what is written each time that jobs are asked for."""
    files = (file for file in path.rglob("*") if not {".hydra", ".locks"} & {*file.parts} and file.is_file())
    return {file: file.stat().st_mtime_ns for file in files if file.name not in ("sweep.log", "multirun.yaml")}


PLACE = "HETEROFL_TEST_FOLDER"


class Die(RoundCallback):
    """A callback that kills its process, the first time that any process calls it."""

    def on_round_end(self, progress: object) -> bool:
        try:
            Path(os.environ[PLACE], ".dead").touch(exist_ok=False)
        except FileExistsError:
            return False
        os.kill(os.getpid(), signal.SIGKILL)
        return False
