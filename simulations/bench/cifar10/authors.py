"""The authors' side: their own functions in a process of its own (``authors_driver.py``)."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heterofl_flwr.nn.models import MODELS
from simulations.bench import plain_loop
from simulations.bench.cifar10.task import CLIENTS, MIX, RATES, Experiment

DRIVER = Path(__file__).with_name("authors_driver.py")


@dataclass(frozen=True, slots=True)
class Authors:
    """Seconds of a round's training, of measuring static batch norm, and of testing, in the authors' code."""

    train: float
    moments: float
    test: float


def measure(checkout: Path, experiment: Experiment, rounds: int) -> Authors:
    """Run so many rounds, after one that warms up, and evaluate the last; nothing is written into the checkout."""
    source = checkout.resolve() / "src"
    if not (source / "train_classifier_fed.py").exists():
        raise FileNotFoundError(f"{source} holds no train_classifier_fed.py: --authors names their checkout")
    data = experiment.data()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {}
        for part, split in (("train", data.train), ("test", data.test)):
            arrays[f"{part}_images"] = plain_loop.CIFAR10.pixels(split.inputs).permute(0, 2, 3, 1).numpy()
            arrays[f"{part}_labels"] = split.targets.numpy()
        np.savez(Path(folder, "cifar10.npz"), allow_pickle=False, **arrays)
        order = {
            "work": folder,
            "control": f"1_{CLIENTS}_{len(RATES) / CLIENTS:g}_iid_fix_{MIX}_bn_1_1",
            "device": experiment.device,
            # Their later code has two blocks in each stage; their results are of the paper's model, as is ours.
            "blocks": MODELS["preresnet18"].keywords["blocks"],  # type: ignore[attr-defined]
            "epochs": experiment.epochs,
            "rounds": rounds,
        }
        done = subprocess.run(
            [sys.executable, "-B", str(DRIVER), json.dumps(order)],
            cwd=source,  # they read their settings from there
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},  # their own files hold numpy arrays
        )
    if done.returncode:
        end = f"the authors' process ended with {done.returncode}:"
        raise RuntimeError("\n".join([end, *done.stderr.splitlines()[-15:]]))
    found = json.loads(done.stdout)
    parameters, own = found.pop("parameters"), sum(value.numel() for value in experiment.build(1.0).parameters())
    if parameters != own:
        raise RuntimeError(f"the authors' model has {parameters} parameters and ours {own}: they are not the same work")
    return Authors(**found)
