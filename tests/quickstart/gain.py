# ruff: noqa: T201
"""Accuracies of the converted quickstart.

``python -m tests.quickstart.gain ROUNDS SEEDS`` prints what one more line gives each level. With ``--norms`` it prints
what norms give the full model, after 3 rounds and after all.
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType

import torch
from flwr.app import ArrayRecord, ConfigRecord
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
DISTILLS = {
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
MIX = "a1-b1-c1-d1-e1"
NORM = "nn.BatchNorm2d(outputs)"
VARIANTS = {
    "no norm, all at a": ("nn.Identity()", "a1"),
    "no norm": ("nn.Identity()", MIX),
    "batch norm": (NORM, MIX),
    "group norm of one group": ("nn.GroupNorm(1, outputs)", MIX),
}
"""Norms of the net and mixes that ``--norms`` compares."""


def convert(folder: Path, changes: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> None:
    """Write the converted app into a folder, with changes of its files."""
    shutil.copytree(Path(__file__).parent / "app", folder, dirs_exist_ok=True)
    subprocess.run(["git", "apply", "-p1", str(ROOT / "docs" / "dropin.diff")], cwd=folder, check=True)
    for name, replacements in changes.items():
        path = folder / "quickstart" / name
        text = path.read_text(encoding="utf-8")
        for old, new in replacements.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def accuracies(
    rounds: Sequence[int],
    seed: int,
    changes: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    mix: str = MIX,
    lr: float = CONFIG["lr"],
) -> list[dict[str, float]]:
    """Run the app; return the accuracy of each level's model on all clients' test data, after each of ``rounds``."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(folder, changes)
        sys.path.insert(0, name)
        try:
            from quickstart import client_app, task  # the copy, which is removed with its folder

            def judge(server_round: int, arrays: ArrayRecord) -> None:
                if server_round in rounds:
                    found.append(_judge(task, arrays.to_torch_state_dict()))

            torch.manual_seed(seed)
            strategy, config = HeteroFL(task.Net, mix, seed=seed, fraction_evaluate=0.0), {**CONFIG, "lr": lr}
            with contextlib.redirect_stderr(io.StringIO()), LocalGrid(client_app.app, NODES, run_config=config) as grid:
                strategy.start(grid, num_rounds=rounds[-1], train_config=ConfigRecord({"lr": lr}), evaluate_fn=judge)
            return found
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
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--lr", type=float, default=CONFIG["lr"])
    parser.add_argument("--norms", action="store_true")
    args = parser.parse_args()
    if args.norms:
        for label, (norm, mix) in VARIANTS.items():
            changes = {"task.py": {NORM: norm}}
            runs = [accuracies((3, args.rounds), seed, changes, mix, args.lr) for seed in range(args.seeds)]
            print(f"{label}:", *[f"{mean(run[after]['a'] for run in runs):.1f}" for after in (0, -1)])
    else:
        for line, changes in ((LINE, {}), (DISTILLED, DISTILLS)):
            runs = [accuracies((args.rounds,), seed, changes, lr=args.lr)[0] for seed in range(args.seeds)]
            print(line, {level: round(mean(run[level] for run in runs), 1) for level in LEVELS})
