"""The public names: few, sorted, pinned here, and loaded on first use."""

import ast
import importlib
from importlib import metadata
from pathlib import Path

import pytest

import heterofl_flwr
from heterofl_flwr import _HOMES

PUBLIC = [
    "Adagrad",
    "Adam",
    "Aggregator",
    "Averaging",
    "DeviceProfile",
    "Devices",
    "Evaluation",
    "FedH2L",
    "Fidelity",
    "HeteroFL",
    "HeteroFLError",
    "Hybrid",
    "Levels",
    "Limits",
    "LocalGrid",
    "Mix",
    "Momentum",
    "Plan",
    "Privacy",
    "RayGrid",
    "Robust",
    "RoundCallback",
    "Sampling",
    "SimulatedDevices",
    "Transfer",
    "Windowed",
    "Yogi",
    "__version__",
    "elastic",
    "multi_step",
]


def test_public_names_are_pinned_and_sorted():
    assert heterofl_flwr.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_is_listed(name):
    assert getattr(heterofl_flwr, name) is not None
    assert name in dir(heterofl_flwr)


@pytest.mark.parametrize("name", sorted(_HOMES))
def test_public_name_is_the_object_of_its_home(name):
    home = importlib.import_module(_HOMES[name])
    assert getattr(heterofl_flwr, name) is getattr(home, name)
    assert getattr(home, name).__module__ == _HOMES[name]


def test_type_checkers_see_the_names_that_are_loaded_lazily():
    tree = ast.parse(Path(heterofl_flwr.__file__).read_text(encoding="utf-8"))
    guard = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imports = [node for node in guard.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == _HOMES
    assert {*_HOMES, "__version__"} == set(PUBLIC)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'HeteroFl'"):
        heterofl_flwr.HeteroFl  # noqa: B018  # looking it up is the test


def test_version_is_that_of_the_installed_package():
    assert heterofl_flwr.__version__ == metadata.version("heterofl-flwr")


def test_version_of_a_package_that_was_never_installed_says_so(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert heterofl_flwr._version() == "0+unknown"
