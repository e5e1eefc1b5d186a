"""An existing Flower app, converted by the diff that the documentation prints."""

import importlib
import math
import sys

import pytest
import torch
from flwr.app import Context, RecordDict

from heterofl_flwr import LocalGrid
from tests.federation.tiny import Watched
from tests.quickstart import gain

CONFIG = {"num-server-rounds": 3, "fraction-train": 1.0, "local-epochs": 1, "lr": 0.1, "batch-size": 16}
NODES = 10


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Return the modules of the converted app, which is in a folder as a user's own."""
    gain.convert(folder := tmp_path / "app")
    monkeypatch.chdir(folder)  # it leaves its model there
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("quickstart.server_app"), importlib.import_module("quickstart.client_app")
    for name in [name for name in sys.modules if name.split(".")[0] == "quickstart"]:
        del sys.modules[name]


def run(server, client, monkeypatch, grid_type=LocalGrid):
    """Run the ServerApp on a local grid; return what its strategy returned, the strategy and the grid."""
    found, kind = [], server.HeteroFL
    start = kind.start

    def kept(strategy, **options):
        found.append((start(strategy, **options), strategy))
        return found[0][0]

    monkeypatch.setattr(kind, "start", kept)
    torch.manual_seed(0)
    with grid_type(client.app, NODES, run_config=CONFIG) as grid:
        server.app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), dict(CONFIG)))
    return *found[0], grid


def series(metrics, key):
    return [metrics[server_round][key] for server_round in sorted(metrics)]


def test_the_converted_app_trains_mixed_levels(app, monkeypatch):
    result, strategy, grid = run(*app, monkeypatch, Watched)
    assert strategy.log.rates == {
        partition: rate for partition in range(10) for rate in [(1.0, 0.5, 0.25, 0.125, 0.0625)[partition // 2]]
    }
    assert strategy.log.failures == {}
    losses = series(result.train_metrics_clientapp, "train_loss")
    assert losses[-1] < 0.95 * losses[0]
    assert series(result.evaluate_metrics_clientapp, "eval_loss")[-1] < math.log(10)
    assert series(result.evaluate_metrics_clientapp, "eval_acc")[-1] > 0.3
    shapes = {m.content["arrays"]["features.1.0.weight"].shape for m in grid.of("train")}
    assert shapes == {(32, 16, 3, 3), (16, 8, 3, 3), (8, 4, 3, 3), (4, 2, 3, 3), (2, 1, 3, 3)}


@pytest.mark.slow
def test_the_converted_app_repeats_itself_and_leaves_its_model(app, monkeypatch):
    monkeypatch.setitem(CONFIG, "num-server-rounds", 1)
    states = [run(*app, monkeypatch)[0].arrays.to_torch_state_dict() for _ in range(2)]
    saved = torch.load("final_model.pt", weights_only=True)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(saved[name], states[1][name]) for name in saved)
    assert not any("running" in name for name in saved)


@pytest.mark.release
def test_one_more_line_lifts_the_smallest_level():
    (plain,), (distilled,) = (gain.accuracies((4,), 0, changes) for changes in ({}, gain.DISTILLS))
    assert distilled["e"] > plain["e"] + 10
