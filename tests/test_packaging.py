"""The wheel and the source archive: what is in them, and that the wheel works away from the repository."""

import os
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

pytestmark = pytest.mark.slow

# The second face of the package: foreign state dicts, no Flower.
MATHS_ALONE = """
import sys, torch
import heterofl_flwr
from heterofl_flwr.core import Aggregation, Plan

state = {"weight": torch.zeros(3, 4)}
aggregator = Aggregation(state)
aggregator.add(Plan.between({"weight": (3, 4)}, {"weight": (3, 2)}), {"weight": torch.ones(3, 2)})
aggregator.add(Plan.between({"weight": (3, 4)}, {"weight": (3, 4)}), {"weight": torch.full((3, 4), 3.0)})
assert aggregator.result()["weight"].tolist() == [[2, 2, 3, 3]] * 3
assert "flwr" not in sys.modules
print(heterofl_flwr.__file__, heterofl_flwr.__version__, sep="\\n")
"""


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """Build both archives with what is installed, so without a network; the wheel from the source archive."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Path:
    """Return a folder into which the wheel alone was installed; its dependencies are those of this interpreter."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", "--no-compile", "--target", str(target), str(archives[0]))
    return target


def test_citation_and_changelog_name_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == VERSION
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
    info = f"heterofl_flwr-{VERSION}.dist-info"
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "heterofl_flwr").rglob("*.py")}
    configurations = {f"heterofl_flwr/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert sources | configurations | {"hydra_plugins/heterofl_sweeper.py"} <= names
    assert {"heterofl_flwr/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert {name.split("/")[0] for name in names} == {"heterofl_flwr", "hydra_plugins", info}
    assert "hydra_plugins/__init__.py" not in names  # other packages have plug-ins there too
    assert not [name for name in names if "__pycache__" in name or "/test" in name]


def test_source_archive_holds_tests_and_licence_and_no_leftovers(archives):
    with tarfile.open(archives[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "heterofl_flwr/py.typed", "tests/test_packaging.py"} <= names
    tracked = run("git", "-C", str(ROOT), "ls-files").split()
    assert set(tracked) - names <= {".gitignore", ".pre-commit-config.yaml"}
    assert not [name for name in names if name.startswith((".venv", ".git/", "runs/")) or "__pycache__" in name]


@pytest.mark.release
def test_a_sweep_is_planned_from_the_installed_wheel(installed, tmp_path):
    given = ("experiment=table4", "data=mnist", "mix=a-e", "model.norm=sbn", "dry=true")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    printed = run(sys.executable, "-m", "heterofl_flwr", "sweep", *given, cwd=tmp_path, env=environment)
    assert "\n2 jobs, 0 done" in printed


LINKS = "![plan](docs/plan.svg)[Flower](https://flower.ai) [a page](docs/page.md) [below](#below)"


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (None, "[Flower](https://flower.ai) a page [below](#below)"),
        (
            "https://host/x",
            "![plan](https://host/x/raw/HEAD/docs/plan.svg)[Flower](https://flower.ai) "
            "[a page](https://host/x/blob/HEAD/docs/page.md) [below](#below)",
        ),
    ],
)
def test_the_readme_on_pypi_has_no_relative_links(repository, expected):
    assert runpy.run_path(str(ROOT / "hatch_build.py"))["with_absolute_links"](LINKS, repository) == expected


def test_maths_alone_runs_from_the_installed_wheel(installed, tmp_path):
    path = str(installed)
    printed = run(sys.executable, "-c", MATHS_ALONE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    file, version = printed.split()
    assert file.startswith(path)  # not the repository, which an editable install puts on the path as well
    assert version == VERSION
