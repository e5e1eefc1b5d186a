"""On Flower's simulation engine the model is the one of ``LocalGrid``, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heterofl_flwr import LocalGrid
from tests.federation import simulate
from tests.federation.digits_app import app

pytestmark = [pytest.mark.simulation, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def test_two_actors_give_the_same_model_as_the_local_grid(tmp_path):
    # Ray in a process of its own: it warns about itself, and it stays.
    file = tmp_path / "model.npz"
    command = [sys.executable, "-m", "tests.federation.simulate", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    with LocalGrid(app, simulate.NODES) as grid:
        strategy = simulate.strategy()
        state = strategy.start(grid, num_rounds=simulate.ROUNDS).arrays.to_torch_state_dict()
    with np.load(file) as found:
        assert sorted(found["rates"]) == sorted(strategy.log.rates)
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
