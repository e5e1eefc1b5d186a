"""The examples of models that nobody wrote for this package, as Flower apps."""

import pytest
from flwr.app import Context, RecordDict

from tests.federation.tiny import Watched


def run(app, nodes, rounds, **config):
    """Run an app's two parts as Flower does; return the grid, which has kept what was sent."""
    with Watched(app.client, nodes) as grid:
        app.server(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"num-rounds": rounds, **config}))
    return grid


def lines(capsys):
    """Return the console's lines about rounds, as name and value of what they say."""
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    return [dict(word.split("=") for word in line.split() if "=" in word) for line in printed]


@pytest.mark.slow
def test_a_model_of_torchvision_trains_at_five_levels(monkeypatch, capsys):
    from simulations.examples import torchvision_app  # here, as both take seconds to load

    load = torchvision_app.load
    monkeypatch.setattr(torchvision_app, "load", lambda context, part="train": load(context, part).select(range(8)))
    grid = run(torchvision_app, nodes=5, rounds=2)
    (first, last) = lines(capsys)
    assert float(last["train-loss"]) < float(first["train-loss"])
    shapes = {message.content["arrays"]["layer4.1.conv2.weight"].shape for message in grid.of("train")}
    assert shapes == {(width, width, 3, 3) for width in (512, 256, 128, 64, 32)}
