"""Each method of ``conf/`` learns the bundled digits in three rounds."""

import math

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.sweep.command import CONF
from heterofl_flwr.app.sweep.job import check_jobs, run_once
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import DEFAULTS, flatten
from tests.simulations.sweeping import job
from tests.simulations.tiny_data import write_tiny

CLIENTS = 10
TRAIN = ("train.epochs=2", "train.batch-size=40", "train.lr=0.2")
COMMON = ("data=digits", "model=mlp", "model.hidden='32'", *TRAIN, "num-rounds=3", "evaluate.every=3")
DEEP = ("split=iid", "model=cnn", "model.hidden='16,16,16,16'", "evaluate.levels=true")
LEARNS = {
    # By method: the command, the metric, and what it is well above.
    "heterofl": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "heterofl-fixed": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "heterofl-distilled": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "fedavg": (("mix=a", "split=iid"), "global-accuracy", 0.8),
    "fedrolex": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "federated-dropout": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "fiarse": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "nefl": (
        ("mix=a-b", "split=iid", "model=cnn", "model.hidden='16,16'", "train.batch-size=16"),
        "global-accuracy",
        0.8,
    ),
    "fedgmr": (("mix=a-b", "split=iid", "server.growth=1"), "global-accuracy", 0.8),
    "fjord": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "scaffold": (("mix=a-b", "split=iid"), "global-accuracy", 0.7),
    "depthfl": (("mix=a-c", *DEEP), "global-accuracy", 0.8),
    "scalefl": (("mix=a-c", *DEEP), "global-accuracy", 0.8),
    "standalone": (("mix=a", "split=non-iid-2"), "local-accuracy", 0.9),
    "lg-fedavg": (("mix=a", "split=non-iid-2", "model=cnn", "model.hidden='8,16'"), "local-accuracy", 0.8),
    "fedh2l": (
        (
            *("mix=a", "split=non-iid-2", "model=auto", "model.hidden=auto", "num-rounds=2", "evaluate.every=2"),
            *("distill.models=mlp", "distill.seed-batch=50"),
        ),
        "global-accuracy",
        0.35,
    ),
}


def test_every_method_is_tried():
    assert LEARNS.keys() == {path.stem for path in (CONF / "method").glob("*.yaml")}


QUICK = {"heterofl", "fedrolex", "scaffold", "depthfl", "standalone"}  # others have tests of their rounds elsewhere
METHODS = [pytest.param(own, marks=[] if own in QUICK else pytest.mark.release) for own in LEARNS]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method):
    overrides, metric, least = LEARNS[method]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = flatten(OmegaConf.to_container(compose("config", [*COMMON, f"method={method}", *overrides])))
    config = {**{key: value for key, value in found.items() if key in DEFAULTS}, "run.callbacks": ""}
    with LocalGrid("heterofl_flwr.app.client_app:app", CLIENTS, run_config=config) as grid:
        strategy = server_app.run(grid, load_workload(config))
    assert strategy.log.failures == {}
    assert strategy.log.evaluate[metric] > least


# All methods learn the digits above; here are some that see colours, layers or heads otherwise.
TRIED = [
    pytest.param("wikitext2", "heterofl", marks=pytest.mark.slow),
    pytest.param("mnist", "heterofl", marks=pytest.mark.slow),
    pytest.param("cifar10", "heterofl", marks=pytest.mark.slow),
    pytest.param("cifar10", "lg-fedavg", marks=pytest.mark.release),
    pytest.param("wikitext2", "fedrolex", marks=pytest.mark.release),
    pytest.param("wikitext2", "fjord", marks=pytest.mark.release),
]
OPTIONS = {
    "mnist": ("model.hidden='4,8'", "split=non-iid-2", "train.batch-size=20"),
    "cifar10": ("model.hidden='4,8,8,8'", "split=non-iid-2", "train.batch-size=20"),
    "wikitext2": (),
}


@pytest.mark.parametrize(("data", "method"), TRIED)
@pytest.mark.usefixtures("without_reports")
def test_two_rounds(data, method, tmp_path):
    write_tiny(data, tmp_path / "data")
    line = ["mix=a-e", "num-rounds=2", "train.epochs=1", f"engine.clients={CLIENTS}", "engine.parallel=1"]
    line += [f"data={data}", f"method={method}", f"data.root={tmp_path / 'data'}", "sample.fraction=0.2"]
    own = job(*line, *OPTIONS[data], path=tmp_path / "run")
    check_jobs([own])
    assert run_once(own)
    first, last = RunFolder(own.path).history()
    assert first.failures == last.failures == {}
    assert set(last.evaluate_by_level) == {"a", "e"}
    kind = "perplexity" if data == "wikitext2" else "accuracy"
    found = [last.evaluate[f"{scope}-{kind}"] for scope in ("global", "local")]
    assert all(math.isfinite(value) and value > 0 for value in found)
