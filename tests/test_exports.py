"""The public names: each is that of its home, loaded on first use."""

import ast
import importlib
from importlib import metadata
from pathlib import Path

import heterofl_flwr
from heterofl_flwr import _HOMES

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
