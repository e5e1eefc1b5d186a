"""Flower's own examples, in a checkout of its repository, converted by the diffs beside this file and run."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLAIN = {"rows": 5000, "nodes": 10, "config": {}, "node_config": {}}
LIMITS = {"heterofl_flwr.client": 16, "heterofl_flwr.classic": 20}
"""How many lines a conversion may add, by what it imports: that of the Message API or of the classic one."""

EXAMPLES = {
    "quickstart-pytorch": {},
    "advanced-pytorch": {"config": {"num-server-rounds": 3, "fraction-train": 1.0}},
    "quickstart-pytorch-lightning": {"rows": 2000},
    "quickstart-huggingface": {"rows": 1000, "config": {"fraction-train": 1.0, "fraction-evaluate": 1.0}},
    "flower-simulation-step-by-step-pytorch": {"config": {"fraction-fit": 1.0}},
    "opacus": {"rows": 1000},
    # A hundred clients a round, because entries that few hold get more noise. Secure aggregation is left out: it adds
    # up replies of one size.
    "fl-dp-sa": {
        "rows": 20_000,
        "nodes": 500,
        "config": {"num-sampled-clients": 100, "num-shares": 3, "reconstruction-threshold": 2},
    },
    "embedded-devices": {"node_config": {"dataset-path": "datasets/fashionmnist_part_{number}"}},
    "flowertune-vit": {"rows": 1000},
}
NEEDS = {
    "advanced-pytorch": ["wandb"],
    "quickstart-pytorch-lightning": ["pytorch_lightning"],
    "quickstart-huggingface": ["transformers", "evaluate"],
    "flower-simulation-step-by-step-pytorch": ["wandb"],
    "opacus": ["opacus", "tqdm"],
}


@pytest.fixture
def make(tmp_path):
    """Return a function that copies an example out of the checkout, and converts it or not."""
    if "HETEROFL_FLOWER" not in os.environ:
        pytest.skip("needs Flower's examples: set HETEROFL_FLOWER to a checkout of its repository at fdef7af")

    def copy(name: str, *, converted: bool) -> Path:
        source = Path(os.environ["HETEROFL_FLOWER"], "examples", name).resolve()
        source = source / "my-awesome-app" if (source / "my-awesome-app").is_dir() else source
        folder = shutil.copytree(source, tmp_path / f"{name}-{converted}")
        if converted:
            subprocess.run(["git", "apply", str(HERE / f"{name}.diff")], cwd=folder, check=True)
        return folder

    return copy


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_diff_adds_few_lines(name):
    lines = (HERE / f"{name}.diff").read_text(encoding="utf-8").splitlines()
    added = [line for line in lines if line[:1] == "+" and line[:3] != "+++" and line[1:].strip()]
    (limit,) = {limit for module, limit in LIMITS.items() if any(module in line for line in added)}
    assert len(added) <= limit


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_diff_applies_to_the_example(name, make):
    make(name, converted=True)


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_converted_example_learns_where_the_original_does(name, make):
    for module in NEEDS.get(name, []):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")
    theirs, ours = (run(make(name, converted=converted), name) for converted in (False, True))
    assert ours["failures"] == []
    assert len(ours["sizes"]) == 5
    assert learns(ours["metrics"]) or not learns(theirs["metrics"])


def run(folder: Path, name: str) -> dict:
    """Run an app in a process of its own, which asks the network for nothing and writes nowhere else."""
    paths = [str(HERE.parents[1]), str(folder), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    own |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "WANDB_MODE": "disabled"}
    words = [sys.executable, "-m", "tests.flower_examples.play", json.dumps(PLAIN | EXAMPLES[name])]
    done = subprocess.run(words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def learns(metrics: dict[str, list[float]]) -> bool:
    """Whether a loss of evaluation, or of training, fell by a hundredth, or, without any, an accuracy rose."""
    for kind, sign in (("evaluate", "loss"), ("train", "loss"), ("evaluate", "acc")):
        found = [own for name, own in metrics.items() if name.startswith(kind) and sign in name and len(own) > 1]
        if found:
            first, *_, last = found[0]
            return last < 0.99 * first if sign == "loss" else last > first + 0.01
    return False
