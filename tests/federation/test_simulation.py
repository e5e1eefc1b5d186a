"""On Ray: whatever the number of actors, the model is the one of ``LocalGrid``, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heterofl_flwr import LocalGrid
from tests.federation import simulate
from tests.federation.digits_app import app

pytestmark = pytest.mark.simulation

ROOT = Path(__file__).parents[2]


def test_one_actor_two_actors_and_the_local_grid_give_the_same_model(tmp_path):
    # Ray in a process of its own: it warns about itself, and it stays.
    command = [sys.executable, "-m", "tests.federation.simulate", str(tmp_path), "1", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    with LocalGrid(app, simulate.NODES) as grid:
        strategy = simulate.strategy()
        state = strategy.start(grid, num_rounds=simulate.ROUNDS).arrays.to_torch_state_dict()
    for actors in (1, 2):
        with np.load(tmp_path / f"{actors}.npz") as found:
            assert sorted(found["rates"]) == sorted(strategy.log.rates)
            for name, tensor in state.items():
                np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=f"{name}, {actors} actors")
