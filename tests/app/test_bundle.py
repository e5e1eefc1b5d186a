"""The apps that Flower is given: the clone's own, and the one that stands for the installed package."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest

from heterofl_flwr.app.request import CLIENT_APP, SERVER_APP
from heterofl_flwr.settings.validate import DEFAULTS
from heterofl_flwr.settings.without_torch import to_toml
from tests.docs.pages import APP, blocks
from tests.flower_internals import build_fab_from_disk, flatten_dict, load_and_validate

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's use of pathspec


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Return what a clone has, in a folder whose name Flower accepts."""
    folder = tmp_path_factory.mktemp("parent") / "heterofl-clone"
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("heterofl_flwr", "tests", "simulations"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        ".gitignore",
        "hatch_build.py",
        "noxfile.py",
    ):
        shutil.copy(ROOT / name, folder / name)
    return folder


def contents(fab: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_clone_is_an_app_without_a_warning(clone):
    config, warnings = load_and_validate(clone / "pyproject.toml")
    assert warnings == []
    app = config["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    assert "federations" not in config["tool"]["flwr"]  # Flower would rewrite the file


def test_the_bundle_has_all_of_the_package_a_module_of_the_users_and_nothing_else(clone):
    (clone / "mycallback.py").touch()  # as for run.callbacks = "mycallback:KeepBest"
    names = contents(build_fab_from_disk(clone)).keys()
    package = {str(path.relative_to(clone)) for path in (clone / "heterofl_flwr").rglob("*.py")}
    assert package <= names
    assert any(name.startswith("heterofl_flwr/data/") for name in names)
    assert names - package == {"mycallback.py", "pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}


def test_the_installed_package_is_an_app_as_its_page_says(tmp_path):
    folder = tmp_path / "digits-app"
    folder.mkdir()
    head, table, _ = blocks(APP, "toml")[0].code.partition("[tool.flwr.app.config]\n")
    page = APP.read_text(encoding="utf-8")
    for own, packaged in (("server_app:app", SERVER_APP), ("client_app:app", CLIENT_APP)):
        assert f"`{packaged}`" in page
        head = head.replace(f'"{own}"', f'"{packaged}"')
    (folder / "pyproject.toml").write_text(head + table + to_toml(DEFAULTS), encoding="utf-8")
    config, _ = load_and_validate(folder / "pyproject.toml")
    app = config["tool"]["flwr"]["app"]
    assert flatten_dict(app["config"]) == DEFAULTS
    assert app["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    assert contents(build_fab_from_disk(folder)).keys() == {"pyproject.toml", ".info/CONTENT"}
