"""Flower's own examples and a baseline, in a checkout of its repository, converted by the diffs beside this file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DIFFS = sorted(Path(__file__).parent.glob("*.diff"))


@pytest.mark.parametrize("diff", DIFFS, ids=lambda path: path.stem)
def test_a_diff_applies_to_the_example(diff, tmp_path):
    if "HETEROFL_FLOWER" not in os.environ:
        pytest.skip("needs Flower's examples: set HETEROFL_FLOWER to a checkout of its repository at fdef7af")
    source = Path(os.environ["HETEROFL_FLOWER"], "baselines" if diff.stem == "fedrep" else "examples", diff.stem)
    nested = source / "my-awesome-app"
    folder = shutil.copytree(nested if nested.is_dir() else source, tmp_path / diff.stem)
    done = subprocess.run(["git", "apply", diff], cwd=folder, check=False)
    assert done.returncode == 0
