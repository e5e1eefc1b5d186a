"""Flower's own examples and a baseline, in a checkout of its repository, converted by the diffs beside this file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent

EXAMPLES = sorted(path.stem for path in HERE.glob("*.diff"))


def source_of(name: str) -> Path:
    """Return the folder of an example or a baseline in the checkout."""
    room = "baselines" if name == "fedrep" else "examples"
    source = Path(os.environ["HETEROFL_FLOWER"], room, name).resolve()
    return source / "my-awesome-app" if (source / "my-awesome-app").is_dir() else source


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_diff_applies_to_the_example(name, tmp_path):
    if "HETEROFL_FLOWER" not in os.environ:
        pytest.skip("needs Flower's examples: set HETEROFL_FLOWER to a checkout of its repository at fdef7af")
    folder = shutil.copytree(source_of(name), tmp_path / name)
    done = subprocess.run(["git", "apply", str(HERE / f"{name}.diff")], cwd=folder, check=False)
    assert done.returncode == 0
