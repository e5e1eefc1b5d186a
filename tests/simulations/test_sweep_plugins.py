"""Hydra's plug-ins run sweeps as their pages say: several jobs at once, on a cluster, and a search for good settings.

They are the extra ``sweep-plugins``; without them these tests skip themselves.
"""

import importlib.util

import pytest
import yaml

from heterofl_flwr.runs import RunFolder
from tests.simulations.sweeping import SHRUNKEN, finish, start

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
}
HELPERS = "tests.simulations.sweeping"


def need(name: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.{name}") is None:
        pytest.skip(f"needs {name.replace('_', '-')}: pip install -e '.[sweep-plugins]'")


def finished(folder) -> list[bool]:
    return sorted(RunFolder(path).about().get("finished") is not None for path in folder.glob("digits-*"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_jobs_run_at_once_and_one_that_fails_stops_neither(launcher, tmp_path):
    need(f"hydra_{launcher}_launcher")
    rates = "train.lr=1e30,0.05,0.03"
    status, out = finish(start(tmp_path, rates, *SHRUNKEN, *LAUNCHERS[launcher], f"run.callbacks={HELPERS}:Meet"))
    assert (status, finished(tmp_path)) == (1, [False, True, True]), out
    assert "simulations.sweep: 1 of 3 jobs failed:\n  digits-" in out
    assert ": round 1: 0 of 20 clients gave a usable reply" in out
    assert "2 of 3 jobs done\n" in out


def test_optuna_gets_the_metric_and_a_search_is_not_repeated(tmp_path):
    need("hydra_optuna_sweeper")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    search += ("hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0")
    sweep = ("mix=e", *SHRUNKEN, *search, "train.lr=interval(0.01,0.2)")
    status, out = finish(start(tmp_path, *sweep))
    assert status == 0, out
    jobs = [RunFolder(path) for path in tmp_path.glob("digits-*")]
    reached = {job.settings()["train.lr"]: job.history()[-1].evaluate["global-accuracy"] for job in jobs}
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text(encoding="utf-8"))
    assert len(reached) == 3
    assert best["best_value"] == max(reached.values()) == reached[best["best_params"]["train.lr"]]
    status, out = finish(start(tmp_path, *sweep))
    assert (status, out.count("\ndone before\n")) == (0, 3), out
    status, out = finish(start(tmp_path, *sweep, "dry=true"))
    assert status == 2, out
    assert "dry: found true, but this sweeper chooses jobs one after the other; expected false" in out
