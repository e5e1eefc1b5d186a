"""The app for Flower Hub and the Flower baseline: what Flower asks of each, and that each runs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from datasets import Dataset, Image

from tests.flower_internals import check_app_to_publish, check_files_to_publish
from tests.simulations.tiny_data import FOLDERS, write_tiny

SIMULATIONS = Path(__file__).parents[2] / "simulations"
HUB, BASELINE = SIMULATIONS / "hub_app" / "unequal-clients", SIMULATIONS / "baseline"
SHORT = {
    HUB: ["num-server-rounds=2", "min-available-nodes=5"],
    BASELINE: ["num-server-rounds=2", "num-clients=5", "fraction-train=1.0", "local-epochs=1", "evaluate-every=2"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Return a folder with a small MNIST, from which ``datasets`` reads images."""
    root, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("mnist")
    write_tiny("mnist", root)
    for split in ("train", "test"):
        (file,) = (root / FOLDERS["mnist"]).glob(f"{split}-*.parquet")
        Dataset.from_parquet(str(file)).cast_column("image", Image()).to_parquet(folder / file.name)
    return folder


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's use of pathspec
def test_flower_hub_accepts_the_app():
    files = {path.relative_to(HUB) for path in check_files_to_publish(HUB)}
    ours = {path.relative_to(HUB) for path in HUB.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files == ours  # nothing is left out for its type
    assert {Path("LICENSE"), Path("README.md")} <= files
    project = check_app_to_publish(HUB)["project"]
    assert project["name"] == HUB.name
    assert len(project["description"]) < 200


def test_the_baseline_has_the_files_that_flower_asks_for():
    project = tomllib.loads((BASELINE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["name"]
    wanted = {f"{own}.py" for own in ("client_app", "dataset", "model", "server_app", "strategy", "utils")}
    assert wanted <= {path.name for path in (BASELINE / name).iterdir()}
    front = (BASELINE / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert [line.split(":")[0] for line in front.strip().splitlines()] == ["title", "url", "labels", "dataset"]


@pytest.mark.release
@pytest.mark.parametrize(("app", "grid", "further"), [(HUB, "ray", []), (BASELINE, "local", ["non-iid=true"])])
def test_it_runs_in_a_simulation(app, grid, further, tiny, tmp_path):
    settings = [f"dataset={tiny}", "mix=c1-d1-e1", *SHORT[app], *further]
    command = [sys.executable, "-m", "heterofl_flwr", "run", "--app", str(app), "--clients", "5", "--out", "run"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([*command, "--grid", grid, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2/2" in done.stdout


@pytest.mark.release
def test_the_hub_app_runs_on_folders_of_nodes(tiny, tmp_path):
    (file,) = tiny.glob("train-*.parquet")
    whole = Dataset.from_parquet(str(file))
    for node in range(2):
        whole.shard(2, node).save_to_disk(tmp_path / f"partition_{node}")
    code = f"""
import sys
sys.path.insert(0, {str(HUB)!r})
from heterofl_flwr import HeteroFL, LocalGrid
from sizes.model import build

def node(partition):
    return {{"data-path": f"partition_{{partition}}", "level": "ac"[partition]}}

config = {{"image-column": "image", "local-epochs": 1, "batch-size": 32, "learning-rate": 0.05}}
strategy = HeteroFL(build, "a1-c1")
with LocalGrid("sizes.client_app:app", 2, node_config=node, run_config=config) as grid:
    result = strategy.start(grid, num_rounds=2)
print(sorted(result.evaluate_metrics_clientapp), sorted(strategy.log.rates.values()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 2] [0.25, 1.0]"
