"""Flower's own examples, in a checkout of its repository, converted by the diffs beside this file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMITS = {"heterofl_flwr.client": 16, "heterofl_flwr.classic": 20}
"""How many lines a conversion may add, by what it imports: that of the Message API or of the classic one."""

EXAMPLES = sorted(path.stem for path in HERE.glob("*.diff"))


@pytest.fixture
def convert(tmp_path):
    """Return a function that converts a copy of an example of the checkout."""
    if "HETEROFL_FLOWER" not in os.environ:
        pytest.skip("needs Flower's examples: set HETEROFL_FLOWER to a checkout of its repository at fdef7af")

    def convert(name: str) -> None:
        source = Path(os.environ["HETEROFL_FLOWER"], "examples", name).resolve()
        source = source / "my-awesome-app" if (source / "my-awesome-app").is_dir() else source
        folder = shutil.copytree(source, tmp_path / name)
        subprocess.run(["git", "apply", str(HERE / f"{name}.diff")], cwd=folder, check=True)

    return convert


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_diff_adds_few_lines(name):
    lines = (HERE / f"{name}.diff").read_text(encoding="utf-8").splitlines()
    added = [line for line in lines if line[:1] == "+" and line[:3] != "+++" and line[1:].strip()]
    (limit,) = {limit for module, limit in LIMITS.items() if any(module in line for line in added)}
    assert len(added) <= limit


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_diff_applies_to_the_example(name, convert):
    convert(name)
