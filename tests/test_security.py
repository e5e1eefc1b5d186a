"""What SECURITY.md says, as far as source text shows it; ruff's rules have the part on pickles, ``eval`` and shells."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for top in ("heterofl_flwr", "simulations") for path in (ROOT / top).rglob("*.py"))
READERS = [
    path
    for path in SOURCES
    for room in (
        *("core", "nn", "adapters", "elastic_models", "stages", "training", "federation", "strategies", "classic"),
        *(f"client/{name}.py" for name in ("instruction", "model", "node_config", "queries", "stages", "task")),
        *(f"transport/{name}.py" for name in ("messages", "packing", "exchange", "relay", "guard")),
        "grids/windowed.py",
    )
    if path.is_relative_to(ROOT / "heterofl_flwr" / room)
]
"""The modules between a SuperLink and the new model."""

FILES = {"os", "pathlib", "shutil", "tempfile", "glob", "subprocess", "socket", "urllib", "http", "fileinput"}
OPENS = {"fromfile", "tofile", "memmap", "loadtxt", "savetxt", "read_bytes", "write_bytes", "read_text"}
MODULES = {"scikit-learn": "sklearn", "hydra-core": "hydra", "flwr-datasets": "flwr_datasets"}
MODULES["tensorboard"] = "torch.utils.tensorboard"  # which is torch's own door to it


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield node.module.partition(".")[0]


def calls(source: str) -> tuple[ast.AST, set[str]]:
    """Return a module's syntax tree, and what it calls."""
    tree = ast.parse(source)
    return tree, {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def touches_files(source: str) -> list[str]:
    """Return what of a module could reach a file, a process or the network."""
    tree, called = calls(source)
    methods = {name.rpartition(".")[2] for name in called}
    return sorted({*FILES.intersection(imported(tree)), *OPENS.intersection(methods), *called & {"open"}})


def found_by(check: Callable[[str], list[str]], paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return what a check finds, by the name of the module."""
    found = {str(path.relative_to(ROOT)): check(path.read_text(encoding="utf-8")) for path in paths}
    return {name: own for name, own in found.items() if own}


def test_what_reads_messages_reaches_no_file_process_or_network():
    assert len(READERS) > 50
    assert found_by(touches_files, READERS) == {}


def runs_what_it_gets(source: str) -> list[str]:
    """Return what of a module could run what it was given."""
    tree, called = calls(source)
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "importlib"}
    return sorted({*modules.intersection(imported(tree)), *called & {"eval", "exec", "torch.load", "np.load"}})


def test_what_reads_messages_runs_nothing_of_them():
    assert found_by(runs_what_it_gets, READERS) == {}
    text = "import pickle; eval(reply); torch.load(reply); model.eval()"
    assert [runs_what_it_gets(own.strip()) for own in text.split(";")] == [["pickle"], ["eval"], ["torch.load"], []]


def test_each_promise_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|simulations)/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    tables = re.findall(r"\| promise \|.*\n\|-.*\n((?:\|.*\n)+)", text)
    assert len(tables) == 2
    assert [row for table in tables for row in table.splitlines() if "`tests/" not in row.split(" | ")[1]] == []


def test_the_checker_finds_what_touches_files():
    texts = "import os.path; from pathlib import Path; open(name); np.fromfile(name); io.BytesIO(data); it.open(x)"
    found = [touches_files(text.strip()) for text in texts.split(";")]
    assert found == [["os"], ["pathlib"], ["open"], ["fromfile"], [], []]


def requirements(*, extras: bool = False) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(chain(*project["optional-dependencies"].values()) if extras else ())]
    return [re.split(r"[\[<>=~ ]", line, maxsplit=1)[0] for line in lines]


def test_each_dependency_is_used_and_installed():
    used = {name for path in SOURCES for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    for name in requirements():
        assert MODULES.get(name, name) in used, f"{name} is required and never imported"
        assert metadata.version(name)


def test_constraints_name_versions_that_are_installed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("~=") for line in lines if not line.startswith("#"))
    assert pinned.keys() <= set(requirements(extras=True))
    for name, version in pinned.items():
        assert metadata.version(name).startswith(version.rpartition(".")[0])
