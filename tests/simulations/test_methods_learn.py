"""Each method of ``conf/`` learns the bundled digits in three rounds."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.sweep.command import CONF
from heterofl_flwr.app.task import load_task
from heterofl_flwr.settings.flat import DEFAULTS, flatten

CLIENTS = 10
TRAIN = ("train.epochs=2", "train.batch-size=16", "train.lr=0.1")
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
    "fjord": (("mix=a-b", "split=iid"), "global-accuracy", 0.8),
    "depthfl": (("mix=a-c", *DEEP), "global-accuracy", 0.8),
    "scalefl": (("mix=a-c", *DEEP), "global-accuracy", 0.8),
    "standalone": (("mix=a", "split=non-iid-2"), "local-accuracy", 0.9),
    "lg-fedavg": (("mix=a", "split=non-iid-2", "model=cnn", "model.hidden='8,16'"), "local-accuracy", 0.8),
    "fedh2l": (
        ("mix=a", "split=non-iid-2", "train.epochs=1", "distill.models=mlp", "distill.seed-batch=50"),
        "global-accuracy",
        0.35,
    ),
}


def test_every_method_is_tried():
    assert LEARNS.keys() == {path.stem for path in (CONF / "method").glob("*.yaml")}


METHODS = [pytest.param(own, marks=[pytest.mark.slow] if own == "fedh2l" else []) for own in LEARNS]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method):
    overrides, metric, least = LEARNS[method]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = flatten(OmegaConf.to_container(compose("config", [*COMMON, f"method={method}", *overrides])))
    config = {**{key: value for key, value in found.items() if key in DEFAULTS}, "run.callbacks": ""}
    with LocalGrid("heterofl_flwr.app.client_app:app", CLIENTS, run_config=config) as grid:
        strategy = server_app.run(grid, load_task(config))
    assert strategy.log.failures == {}
    assert strategy.log.evaluate[metric] > least
