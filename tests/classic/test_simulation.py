"""The classic API under Flower's own entry points, each in a process of its own: they warn that they are old."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common import Context, parameters_to_ndarrays

from heterofl_flwr import LocalGrid
from tests.classic import digits_clients, run_classic

pytestmark = [pytest.mark.simulation, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["simulated", "served"])
def test_mixed_levels_train_and_evaluate(kind, tmp_path):
    file = tmp_path / "out.npz"
    command = [sys.executable, "-m", "tests.classic.run_classic", kind, str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    with np.load(file) as found:
        assert found["rates"].tolist() == [[0, 1.0], [1, 0.25], [2, 0.0625]]
        assert 0 < found["accuracy"] <= 1
        for number, array in enumerate(local()):
            np.testing.assert_array_equal(found[f"arr_{number}"], array)


def local():
    """Return the model that the same run gives on ``LocalGrid``."""
    strategy = run_classic.strategy()
    with LocalGrid(digits_clients.app, run_classic.NODES) as grid:
        server = digits_clients.make_server(strategy, run_classic.ROUNDS)
        server(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
    return parameters_to_ndarrays(strategy.last)
