"""Imports go one way, the maths loads no Flower, and nothing unpickles or evaluates text.

The rooms and their order are those of CONTRIBUTING.md. The checker reads source text, so imports inside functions and
behind ``TYPE_CHECKING`` count as well; the first tests show it each fault that it must find.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heterofl_flwr import _HOMES

ROOT = Path(__file__).parents[1]
PACKAGE = "heterofl_flwr"

# A module imports from its own step or an earlier one.
STEPS = (
    ("errors",),
    ("core",),
    ("nn",),
    ("data", "learn", "slicing"),
    ("messages",),
    ("capability",),
    ("methods", "legacy", "client", "grids"),
    ("settings",),
    ("app", "report", "export"),
    ("__main__",),
    ("simulations",),
)
STEP = {room: number for number, rooms in enumerate(STEPS) for room in rooms}
NEVER = {("client", "methods"): "an existing ClientApp must not load the strategies"}

FLOWER = {"flwr", "flwr_datasets", "ray"}
HYDRA = {"hydra", "omegaconf"}
FOREIGN = {
    **dict.fromkeys(STEP, HYDRA),
    **dict.fromkeys(("errors", "nn", "learn", "slicing", "export"), FLOWER | HYDRA),
    "core": FLOWER | HYDRA | {"torchvision"},
    "simulations": set(),
}

OWN_ACTORS = ("heterofl_flwr.grids.actors:6: pickle",)
"""Ray pickles all that its actors return; these are processes of ours, and no other machine's unless Ray trusts it."""

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"eval", "exec"}
RISKY = {
    "builtins.eval",
    "builtins.exec",
    "torch.load",
    "torch.save",
}  # torch's files are pickles; ours are safetensors


def room_of(module: str) -> str:
    """Return the room of a dotted module name: ``heterofl_flwr.core.plan`` is in ``core``; the package itself in ''."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0]
    return parts[1] if len(parts) > 1 else ""


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of all that a module imports, ``from a import b`` as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")
            base = up[: len(up) + is_package - node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def complaint(room: str, name: str) -> str | None:
    """Say what is wrong with the import of ``name`` in ``room``, if anything is."""
    top = name.split(".")[0]
    if top not in (PACKAGE, "simulations"):
        return f"{room} must not import {top}" if top in FOREIGN[room] else None
    if name == f"{PACKAGE}.__version__":
        return None
    target = room_of(name)
    if target not in STEP and f"{PACKAGE}.{target}" == name:
        target = room_of(_HOMES.get(target, PACKAGE))  # a public name stands for the module where it lives
    if target not in STEP:
        return f"{name} is in no room: name the module that is meant"
    if STEP[target] > STEP[room]:
        return f"{room} imports {target}, against the one-way order"
    if (room, target) in NEVER:
        return f"{room} imports {target}: {NEVER[room, target]}"
    return None


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return the faults of one module's imports, one line of text each."""
    room = room_of(module)
    if room == "":  # the package itself: its imports are lazy and pinned in test_exports.py
        return []
    if room not in STEP:
        return [f"{module} is in no room: give it a place in STEPS"]
    found = {(line, complaint(room, name)) for line, name in imports(ast.parse(source), module, is_package=is_package)}
    return [f"{module}:{line}: {text}" for line, text in sorted(found, key=str) if text]


def dangers(source: str, module: str) -> list[str]:
    """Return where a module could run what a file or a message says: pickles, ``eval`` and ``exec``."""
    tree = ast.parse(source)
    found = [(line, name) for line, name in imports(tree, module, is_package=False) if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in RUNS_TEXT:
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in RISKY:
            found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append((node.value.lineno, "allow_pickle"))
    return [f"{module}:{line}: {name}" for line, name in sorted(set(found))]


def modules() -> list[Path]:
    """Return every source file of the package and of ``simulations``."""
    return sorted(path for top in (PACKAGE, "simulations") for path in (ROOT / top).rglob("*.py"))


def dotted(path: Path) -> str:
    """Return the module name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("heterofl_flwr.errors", "from heterofl_flwr.core.plan import Plan"),
        ("heterofl_flwr.core.plan", "import heterofl_flwr.nn.scaler"),
        ("heterofl_flwr.core.plan", "from heterofl_flwr import nn"),
        ("heterofl_flwr.core.plan", "from .. import nn"),
        ("heterofl_flwr.core.plan", "from ..nn import Scaler"),
        ("heterofl_flwr.core.rules.plain", "from ...nn.scaler import Scaler"),
        ("heterofl_flwr.core.plan", "def late():\n    from heterofl_flwr.learn import train"),
        ("heterofl_flwr.core.plan", "if TYPE_CHECKING:\n    from heterofl_flwr.messages import KEYS"),
        ("heterofl_flwr.core.plan", "importlib.import_module('heterofl_flwr.app')"),
        ("heterofl_flwr.errors", "from heterofl_flwr import Plan"),
        ("heterofl_flwr.core.plan", "import heterofl_flwr"),
        ("heterofl_flwr.core.plan", "from heterofl_flwr import *"),
        ("heterofl_flwr.core.plan", "from heterofl_flwr.strange import x"),
        ("heterofl_flwr.nn.cnn", "from heterofl_flwr.data import sources"),
        ("heterofl_flwr.learn.train", "from heterofl_flwr.messages import KEYS"),
        ("heterofl_flwr.data.hub", "from heterofl_flwr.grids import LocalGrid"),
        ("heterofl_flwr.messages", "from heterofl_flwr.methods.heterofl import HeteroFL"),
        ("heterofl_flwr.methods.heterofl", "from heterofl_flwr.settings import from_flat"),
        ("heterofl_flwr.settings", "from heterofl_flwr.app import launcher"),
        ("heterofl_flwr.app.server", "import simulations.run"),
        ("heterofl_flwr.report.html", "from simulations import paper"),
        ("heterofl_flwr.client", "from heterofl_flwr.methods import heterofl"),
        ("heterofl_flwr.client", "from .methods.heterofl import HeteroFL"),
        ("heterofl_flwr.client", "from . import methods"),
        ("heterofl_flwr.errors", "import flwr"),
        ("heterofl_flwr.core.plan", "from flwr.app import Message"),
        ("heterofl_flwr.core.plan", "import flwr_datasets.partitioner as p"),
        ("heterofl_flwr.core.plan", "import ray"),
        ("heterofl_flwr.core.plan", "import torchvision"),
        ("heterofl_flwr.nn.cnn", "import torch, flwr.app"),
        ("heterofl_flwr.learn.train", "from flwr.common import Context"),
        ("heterofl_flwr.app.server", "import hydra"),
        ("heterofl_flwr.settings", "from omegaconf import OmegaConf"),
        ("heterofl_flwr.core.plan", "from hydra.core import config_store"),
        ("heterofl_flwr.newroom.x", "import torch"),
    ],
)
def test_checker_finds_a_fault(module, source):
    found = faults(source, module)
    assert len(found) == 1
    assert found[0].startswith(module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("heterofl_flwr.core.plan", "import math, torch"),
        ("heterofl_flwr.core.plan", "from heterofl_flwr.core.rules import registry"),
        ("heterofl_flwr.core.plan", "from . import axes"),
        ("heterofl_flwr.core.plan", "from ..errors import ShapeError"),
        ("heterofl_flwr.core.plan", "from heterofl_flwr import HeteroFLError"),
        ("heterofl_flwr.nn.cnn", "from heterofl_flwr import Plan"),
        ("heterofl_flwr.nn.cnn", "import torchvision"),
        ("heterofl_flwr.learn.train", "import heterofl_flwr.nn.cnn"),
        ("heterofl_flwr.data.splits", "from flwr_datasets.partitioner import Partitioner"),
        ("heterofl_flwr.messages", "from flwr.app import Message"),
        ("heterofl_flwr.methods.heterofl", "from heterofl_flwr.grids import Windowed"),
        ("heterofl_flwr.client", "from heterofl_flwr.messages import KEYS"),
        ("heterofl_flwr.app.server", "from heterofl_flwr import __version__, settings"),
        ("simulations.run", "import hydra, ray\nfrom heterofl_flwr.app import launcher\nfrom simulations import paper"),
        ("heterofl_flwr", "from heterofl_flwr.methods.heterofl import HeteroFL"),
    ],
)
def test_checker_lets_pass(module, source):
    assert faults(source, module) == []


def test_relative_imports_of_a_package_count_from_itself():
    assert faults("from .plan import Plan", "heterofl_flwr.core", is_package=True) == []
    assert faults("from ..nn import Scaler", "heterofl_flwr.core", is_package=True) != []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import dill as d",
        "eval('1')",
        "run = exec",
        "builtins.eval(text)",
        "torch.load(path)",
        "torch.save(state, path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_checker_finds_a_danger(source):
    assert len(dangers(source, "heterofl_flwr.core.x")) == 1


@pytest.mark.parametrize("source", ["model.eval()", "np.load(path, allow_pickle=False)", "x = 'eval'", "import json"])
def test_checker_finds_no_danger(source):
    assert dangers(source, "heterofl_flwr.core.x") == []


def test_checker_sees_the_source():
    names = [dotted(path) for path in modules()]
    assert {"heterofl_flwr", "heterofl_flwr.errors", "heterofl_flwr.core", "heterofl_flwr.core.levels"} <= set(names)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_module_imports_one_way(path):
    source = path.read_text(encoding="utf-8")
    assert faults(source, dotted(path), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_module_never_unpickles_or_evaluates(path):
    found = dangers(path.read_text(encoding="utf-8"), dotted(path))
    assert [own for own in found if own not in OWN_ACTORS] == []


def test_what_may_unpickle_does():
    found = [danger for path in modules() for danger in dangers(path.read_text(encoding="utf-8"), dotted(path))]
    assert found == list(OWN_ACTORS)


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
    core = [dotted(path) for path in modules() if room_of(dotted(path)) == "core"]
    loaded = loaded_after(f"from heterofl_flwr import Aggregator, Mix, Plan\nimport {', '.join(core)}")
    assert "torch" in loaded
    assert loaded.isdisjoint(FLOWER | HYDRA | {"torchvision"})


def test_a_client_with_images_of_its_own_loads_nothing_that_it_does_not_need(tmp_path):
    """In a deployment each message starts a process, so each of these would be paid for with each message."""
    loaded = loaded_after(
        f"import sys, heterofl_flwr.client, heterofl_flwr.app.client_app\n"
        f"assert not {{'pyarrow', 'PIL'}} & set(sys.modules)\n"
        f"from pathlib import Path\n"
        f"from simulations.benchmarks import edge_client\n"
        f"from simulations.benchmarks.edge import write_images\n"
        f"write_images(Path({str(tmp_path)!r}), 20)\n"
        f"edge_client.main({str(tmp_path)!r}, 'e')"
    )
    assert {"torch", "flwr", "PIL"} <= loaded
    assert loaded.isdisjoint(HYDRA | {"ray", "torchvision", "datasets", "flwr_datasets", "matplotlib"})
    assert loaded.isdisjoint({"sklearn", "scipy", "pandas", "tensorboard", "jinja2", "sympy", "triton"})
