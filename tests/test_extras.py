"""The package with nothing installed but what it requires: what works, and which extra each missing part names."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Whatever is installed here beyond the requirements cannot be imported there.
BLOCK = """
import sys

BLOCKED = set({blocked})

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def required(requirements: list[str]) -> set[str]:
    """Return the names of all distributions that these requirements bring, with those that they bring in turn."""
    found, todo = set(), [Requirement(own) for own in requirements]
    while todo:
        own = todo.pop()
        name = canonicalize_name(own.name)
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        for one in map(Requirement, needs):
            wanted = any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in (own.extras or {""}))
            if wanted and canonicalize_name(one.name) not in found:
                todo.append(one)
    return found


def run_thin(code: str, folder: Path) -> str:
    """Return what code prints in a process that can import only what the package requires."""
    brought = required(PROJECT["dependencies"]) | {"heterofl-flwr"}
    homes = metadata.packages_distributions()
    blocked = {module for module, names in homes.items() if not {canonicalize_name(name) for name in names} & brought}
    assert {"ray", "hydra", "matplotlib", "flwr_datasets", "torchvision", "sklearn", "PIL"} <= blocked
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    text = BLOCK.format(blocked=sorted(blocked)) + code
    done = subprocess.run([sys.executable, "-c", text], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


OWN_DATA = """
import torch

def load():
    draw = torch.Generator().manual_seed(0)
    split = torch.rand(20, 1, 28, 28, generator=draw), torch.arange(20) % 10
    return split, split
"""

TRAIN = """
from tests.edge_client import main
main("own_data:load", "e")
"""

# Every module that can be imported, then what needs an extra.
PARTS = """
import importlib, pkgutil
import heterofl_flwr
from heterofl_flwr.common.errors import MissingExtraError

for module in pkgutil.walk_packages(heterofl_flwr.__path__, "heterofl_flwr."):
    try:
        module.name.endswith("__main__") or importlib.import_module(module.name)
    except ImportError as error:
        print("fails:", module.name, isinstance(error, MissingExtraError))

from heterofl_flwr.data import load_dataset
from heterofl_flwr.export.formats import formats_named
from heterofl_flwr.grids import RayGrid
from heterofl_flwr.report import MLflow, Monitor, TensorBoard, WandB, RunFolder

for name, call in {
    "digits": lambda: load_dataset("digits"),
    "folder": lambda: load_dataset("."),
    "hub": lambda: load_dataset("user/set"),
    "lora": lambda: heterofl_flwr.lora(None),
    "ray": lambda: RayGrid("own_data:app", 2),
    "onnx": lambda: formats_named(["onnx"]),
    "sweep": lambda: importlib.import_module("heterofl_flwr.app.sweep.command"),
    "page": lambda: heterofl_flwr.report.write_report("run"),
    "tensorboard": lambda: TensorBoard(RunFolder("run")).on_start(1, 1, {}),
    "wandb": lambda: WandB("project"),
    "mlflow": lambda: MLflow("project"),
    "monitor": lambda: Monitor(),
}.items():
    try:
        call()
    except MissingExtraError as error:
        print("needs:", name, error)
    else:
        print("works:", name)
"""


@pytest.mark.slow
def test_without_extras_a_client_trains_and_parts_name_theirs(tmp_path):
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    lines = run_thin(TRAIN + PARTS, tmp_path).splitlines()
    fails = {line.split()[1].removeprefix("heterofl_flwr.") for line in lines if line.startswith("fails:")}
    ray = {f"grids.ray_{name}" for name in ("actors", "dispatch", "session")}
    drawing = {f"report.{name}" for name in ("compare", "drawing", "figures", "page")}
    sweeps = {f"app.sweep.{name}" for name in ("command", "job", "listing")}
    assert fails == {"data.folder"} | drawing | sweeps | ray
    needs = dict(re.findall(r"^needs: (\w+) .*pip install 'heterofl-flwr\[(\w+)\]'", "\n".join(lines), re.MULTILINE))
    assert needs == {
        **dict.fromkeys(("digits", "folder", "hub"), "data"),
        **dict.fromkeys(("page", "tensorboard"), "report"),
        "ray": "simulation",
        "sweep": "sweeps",
        "onnx": "export",
        "lora": "lora",
        "wandb": "wandb",
        "mlflow": "mlflow",
        "monitor": "prometheus",
    }
    assert set(needs.values()) <= PROJECT["optional-dependencies"].keys()


def test_all_contains_every_extra_but_those_of_services():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all", "dev", "mlflow", "sweep-plugins", "wandb"}
    assert "heterofl-flwr[all]" in extras["dev"]
