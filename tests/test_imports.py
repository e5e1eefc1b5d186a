"""What imports load: the public names, and Flower and torch no earlier than needed."""

import ast
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import heterofl_flwr
from heterofl_flwr import _HOMES

ROOT = Path(__file__).parents[1]
FLOWER = {"flwr", "flwr_datasets", "ray"}
HYDRA = {"hydra", "omegaconf"}


def loaded_after(*parts: str) -> list[set[str]]:
    """Return the modules that a fresh interpreter has loaded after each of some parts of a program."""
    shown = "print(*__import__('sys').modules)\n"
    code = "".join(f"{part}\n{shown}" for part in parts)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_package_alone_loads_no_torch():
    (loaded,) = loaded_after("import heterofl_flwr\nassert dir(heterofl_flwr)\nfrom heterofl_flwr import HeteroFLError")
    assert "heterofl_flwr" in loaded
    assert loaded.isdisjoint(FLOWER | HYDRA | {"torch", "torchvision", "numpy"})


def test_other_programs_of_hydra_load_the_sweeper_without_torch():
    pytest.importorskip("hydra")  # an extra, which nox -s matrix does without
    (loaded,) = loaded_after("from hydra.core.plugins import Plugins\nPlugins.instance()")
    assert "hydra_plugins.heterofl_sweeper" in loaded
    assert loaded.isdisjoint(FLOWER | {"torch", "numpy"})


TRAIN = """
from heterofl_flwr.data import Split
from heterofl_flwr.training import TrainingJob, TrainOptions, evaluate, train
from heterofl_flwr.training.engines.cohort import Cohort
model, options = torch.nn.Linear(2, 2), TrainOptions(learning_rate=0.1)
split = Split(torch.ones(3, 2), torch.tensor([0, 1, 1]))
train(model, split, options, seed=0)
evaluate(model, split)
jobs = [TrainingJob(model=torch.nn.Linear(2, 2), split=split, seed=seed) for seed in range(2)]
Cohort(jobs, options).train()
"""
EDGE = """
from pathlib import Path
from tests import edge_client
edge_client.write_images(Path({folder!r}), 20)
edge_client.main({folder!r}, "e")
"""


@pytest.mark.slow
def test_each_part_loads_nothing_that_it_does_not_need(tmp_path):
    """In a deployment each message starts a process, so each of these would be paid for with each message."""
    modules = [f"heterofl_flwr.core.{path.stem}" for path in (ROOT / "heterofl_flwr" / "core").glob("*.py")]
    core, training, client, report, images = loaded_after(
        f"from heterofl_flwr import Aggregation, Mix, Plan\nimport torch, {', '.join(modules)}",
        TRAIN,
        "import heterofl_flwr.client, heterofl_flwr.app.client_app",
        "import heterofl_flwr.report",
        EDGE.format(folder=str(tmp_path)),
    )
    assert core.isdisjoint(FLOWER | HYDRA | {"torchvision"})
    # ``torch.optim.SGD`` would load the compiler: two seconds and 150 MB in every process.
    assert training.isdisjoint(FLOWER | {"torch._dynamo", "datasets", "torchvision"})
    assert client.isdisjoint({"pyarrow", "PIL"})
    assert report.isdisjoint({"matplotlib.pyplot", "tensorboard", "wandb", "mlflow"})
    assert {"torch", "flwr", "PIL"} <= images
    # ``datasets`` reads them, and loads pandas and scipy.
    assert images.isdisjoint(HYDRA | {"ray", "torchvision", "flwr_datasets", "matplotlib"})
    assert images.isdisjoint({"sklearn", "tensorboard", "triton"})


HOMES = {name: f"heterofl_flwr.{module}" for name, module in _HOMES.items()}


def test_public_names_are_the_objects_of_their_homes():
    for name, module in HOMES.items():
        found = getattr(heterofl_flwr, name)
        assert found is getattr(importlib.import_module(module), name)
        assert found.__module__ == module
    assert set(heterofl_flwr.__all__) <= set(dir(heterofl_flwr))


def test_type_checkers_see_the_names_that_are_loaded_lazily():
    tree = ast.parse(Path(heterofl_flwr.__file__).read_text(encoding="utf-8"))
    guard = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imports = [node for node in guard.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == HOMES
    assert {*HOMES, "__version__"} == set(heterofl_flwr.__all__)


def test_version_is_that_of_the_installed_package():
    assert heterofl_flwr.__version__ == metadata.version("heterofl-flwr")
