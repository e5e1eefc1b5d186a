# ruff: noqa: T201
"""What one more line gives each level of the converted quickstart: ``python -m tests.quickstart.gain ROUNDS SEEDS``."""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import torch
from flwr.app import ConfigRecord
from torch.utils.data import ConcatDataset, DataLoader

from heterofl_flwr import HeteroFL, LocalGrid, Plan
from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.nn import collect_moments, with_static_norm

ROOT = Path(__file__).parents[2]
NODES = 10
CONFIG = {"fraction-train": 1.0, "local-epochs": 1, "lr": 0.1, "batch-size": 16}
LINE = "criterion(net(images), labels)"
DISTILLED = "task.loss(net, (images, labels), criterion)"
CHANGES = {
    "task.py": {LINE: DISTILLED, "epochs, lr, device):": "epochs, lr, device, task):"},
    "client_app.py": {
        """        msg.content["config"]["lr"],
        device,
""": """        msg.content["config"]["lr"],
        device,
        task,
"""
    },
}


def convert(folder: Path, *, distilled: bool) -> None:
    """Write the converted app into a folder, with the line that distils or without."""
    shutil.copytree(Path(__file__).parent / "app", folder, dirs_exist_ok=True)
    subprocess.run(["git", "apply", "-p1", str(ROOT / "docs" / "dropin.diff")], cwd=folder, check=True)
    if distilled:
        for name, changes in CHANGES.items():
            path = folder / "quickstart" / name
            text = path.read_text(encoding="utf-8")
            for old, new in changes.items():
                assert text.count(old) == 1
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")


def accuracies(num_rounds: int, seed: int, *, distilled: bool) -> dict[str, float]:
    """Run the app and return the accuracy of each level's own model on all clients' test data."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(folder, distilled=distilled)
        sys.path.insert(0, name)
        try:
            from quickstart import client_app, task  # the copy, which is removed with its folder

            torch.manual_seed(seed)
            strategy = HeteroFL(task.Net, "a1-b1-c1-d1-e1", seed=seed, fraction_evaluate=0.0)
            with contextlib.redirect_stderr(io.StringIO()), LocalGrid(client_app.app, NODES, run_config=CONFIG) as grid:
                result = strategy.start(grid, num_rounds=num_rounds, train_config=ConfigRecord({"lr": CONFIG["lr"]}))
            return _judge(task, result.arrays.to_torch_state_dict())
        finally:
            sys.path.remove(name)
            for module in [own for own in sys.modules if own.split(".")[0] == "quickstart"]:
                del sys.modules[module]


def _judge(task, state) -> dict[str, float]:
    loaders = [task.load_data(node, NODES, 64) for node in range(NODES)]
    train, test = (DataLoader(ConcatDataset([own.dataset for own in both]), 256) for both in zip(*loaders, strict=True))
    found = {}
    for level, rate in LEVELS.items():
        model = task.Net(rate)
        load_parameters(model, Plan.of(task.Net(), model).extract(state))
        model = with_static_norm(model, collect_moments(model, (batch["img"] for batch in train)))
        found[level] = 100 * task.test(model, test, "cpu")[1]
    return found


if __name__ == "__main__":
    number, seeds = map(int, sys.argv[1:])
    for distilled in (False, True):
        runs = [accuracies(number, seed, distilled=distilled) for seed in range(seeds)]
        print(DISTILLED if distilled else LINE, {level: round(mean(run[level] for run in runs), 1) for level in LEVELS})
