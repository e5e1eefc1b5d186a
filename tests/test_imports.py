"""What imports load: Flower and torch no earlier than needed. import-linter checks the order of the packages."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOWER = {"flwr", "flwr_datasets", "ray"}
HYDRA = {"hydra", "omegaconf"}


def loaded_after(statements: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after some statements."""
    code = f"{statements}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_package_alone_loads_no_torch():
    loaded = loaded_after("import heterofl_flwr\nassert dir(heterofl_flwr)\nfrom heterofl_flwr import HeteroFLError")
    assert "heterofl_flwr" in loaded
    assert loaded.isdisjoint(FLOWER | HYDRA | {"torch", "torchvision", "numpy"})


def test_all_of_core_loads_no_flower():
    core = [f"heterofl_flwr.core.{path.stem}" for path in (ROOT / "heterofl_flwr" / "core").glob("*.py")]
    loaded = loaded_after(f"from heterofl_flwr import Aggregator, Mix, Plan\nimport {', '.join(core)}")
    assert "torch" in loaded
    assert loaded.isdisjoint(FLOWER | HYDRA | {"torchvision"})


def test_a_client_with_images_of_its_own_loads_nothing_that_it_does_not_need(tmp_path):
    """In a deployment each message starts a process, so each of these would be paid for with each message."""
    loaded = loaded_after(
        f"import sys, heterofl_flwr.client, heterofl_flwr.app.client_app\n"
        f"assert not {{'pyarrow', 'PIL'}} & set(sys.modules)\n"
        f"from pathlib import Path\n"
        f"from simulations.bench import edge_client\n"
        f"from simulations.bench.edge import write_images\n"
        f"write_images(Path({str(tmp_path)!r}), 20)\n"
        f"edge_client.main({str(tmp_path)!r}, 'e')"
    )
    assert {"torch", "flwr", "PIL"} <= loaded
    assert loaded.isdisjoint(HYDRA | {"ray", "torchvision", "datasets", "flwr_datasets", "matplotlib"})
    assert loaded.isdisjoint({"sklearn", "scipy", "pandas", "tensorboard", "jinja2", "sympy", "triton"})
