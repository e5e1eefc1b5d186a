"""What SECURITY.md says, as far as source text shows it; ruff's rules have the part on pickles, ``eval`` and shells."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for top in ("heterofl_flwr", "simulations") for path in (ROOT / top).rglob("*.py"))
PACKAGE = "heterofl_flwr"
MODULES_BY_NAME = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
    if path.is_relative_to(ROOT / PACKAGE)
}
READERS = (
    *(
        "adapters",
        "classic",
        "core",
        "elastic_models",
        "federation",
        "nn",
        "secure",
        "stages",
        "strategies",
        "training",
    ),
    *(
        f"client.{name}"
        for name in ("instruction", "load_model", "node_config", "outgoing", "queries", "stages", "task")
    ),
    *(
        f"transport.{name}"
        for name in ("arrays", "exchange", "late_nodes", "messages", "reading", "relay", "size_guard", "slices")
    ),
    "grids.windowed",
)
"""The rooms and modules between a SuperLink and the new model; what they import of the package is checked too."""

ALLOWED = {
    "transport.compat": ["importlib", "pathlib"],  # modules of Flower by their literal names; the name of the process
    "client.imports": ["pathlib"],  # compares files of modules that Python has imported
    "client.state": ["pathlib", "read_bytes"],  # the folder that `states-path` names
    "training.device": ["ctypes", "os"],  # the C library's setting of memory that is given back; the environment
}
FILES = {"os", "pathlib", "shutil", "tempfile", "glob", "subprocess", "socket", "urllib", "http", "fileinput"}
FILES |= {"ctypes", "httpx", "mmap", "multiprocessing", "requests", "sqlite3", "tarfile", "webbrowser", "zipfile"}
OPENS = {"fromfile", "tofile", "memmap", "loadtxt", "savetxt", "read_bytes", "write_bytes", "read_text", "write_text"}
MODULES = {"scikit-learn": "sklearn", "hydra-core": "hydra", "flwr-datasets": "flwr_datasets"}
MODULES["tensorboard"] = "torch.utils.tensorboard"  # which is torch's own door to it


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names for name in (alias.name, alias.name.partition(".")[0]))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield node.module.partition(".")[0]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(source: str) -> tuple[ast.AST, set[str]]:
    """Return a module's syntax tree, and what it calls."""
    tree = ast.parse(source)
    return tree, {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def touches_files(source: str) -> list[str]:
    """Return what of a module could reach a file, a process or the network."""
    tree, called = calls(source)
    methods = {name.rpartition(".")[2] for name in called}
    return sorted({*FILES.intersection(imported(tree)), *OPENS.intersection(methods), *called & {"open"}})


@cache
def reader_sources() -> dict[str, str]:
    """Return the source text of each module of READERS, and of what these import of the package, by name."""
    pending, texts = [], dict[str, str]()
    for reader in READERS:
        members = [name for name in MODULES_BY_NAME if f"{name}.".startswith(f"{PACKAGE}.{reader}.")]
        assert members, f"READERS names {reader}, which does not exist"
        pending += members
    while pending:
        name = pending.pop()
        if name not in texts:
            texts[name] = MODULES_BY_NAME[name].read_text(encoding="utf-8")
            names = set(imported(ast.parse(texts[name]))) - {PACKAGE}  # which loads each of its names on demand
            if name.removeprefix(f"{PACKAGE}.") not in ALLOWED:
                pending += [module for module in names if module in MODULES_BY_NAME]
    return texts


def found_by(check: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Return what a check finds in the readers beyond what is allowed, by module."""
    found = {name.removeprefix(f"{PACKAGE}."): check(text) for name, text in reader_sources().items()}
    return {name: items for name, items in found.items() if set(items) - set(ALLOWED.get(name, ()))}


def test_what_reads_messages_reaches_no_file_process_or_network():
    assert len(reader_sources()) > 120
    assert found_by(touches_files) == {}


def runs_what_it_gets(source: str) -> list[str]:
    """Return what of a module could run what it was given."""
    tree, called = calls(source)
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "importlib"}
    return sorted(
        {
            *modules.intersection(imported(tree)),
            *called & {"eval", "exec", "compile", "__import__", "torch.load", "np.load"},
        }
    )


def test_what_reads_messages_runs_nothing_of_them():
    assert found_by(runs_what_it_gets) == {}
    text = "import pickle; eval(reply); torch.load(reply); model.eval()"
    assert [runs_what_it_gets(own.strip()) for own in text.split(";")] == [["pickle"], ["eval"], ["torch.load"], []]


def test_nothing_unpickles_or_evaluates_but_what_rays_actors_return():
    found = {name: runs_what_it_gets(path.read_text(encoding="utf-8")) for name, path in MODULES_BY_NAME.items()}
    found = {name: [item for item in items if item != "importlib"] for name, items in found.items()}
    assert {name: items for name, items in found.items() if items} == {f"{PACKAGE}.grids.ray_actors": ["pickle"]}


def test_each_promise_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|simulations)/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    tables = re.findall(r"\| (?:promise|what a node does) \|.*\n\|-.*\n((?:\|.*\n)+)", text)
    assert len(tables) == 3
    untested = [row for table in tables for row in table.splitlines() if "`tests/" not in row.split(" | ")[1]]
    assert [row.split(" | ")[1] for row in untested] == ["nothing"]  # an attack that nothing protects from


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
