"""Every block of Python in the README and the documentation runs.

The blocks of a page share a namespace, in their order. A block whose first line is a comment with a path, such as
``# net.py``, is that file; the files of the tutorial are there for every page. A block whose first line is
``# not run: <reason>`` is left out.
"""

import importlib
import json
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.docs.pages import APP, DOCS, PAGES, TUTORIAL, Block, blocks, commands, fences, name_of
from tests.processes import Processes, free_port

CHECKED = {"python", "bash", "json", "toml", "yaml"}  # the first two here and in test_commands.py
SHOWN = {"diff", "text"}
STEPS = "    for _ in range(3):\n        for rows in torch.randperm(len(data)).split(16):"
FEWER_STEPS = STEPS.replace("(3)", "(1)").replace("(16)", "(64)")
EXTRAS = ("peft", "transformers")


SLOW = [
    DOCS / "howto" / f"{name}.md"
    for name in ("export", "simulate", "model", "runs", "stages", "privacy", "asynchronous", "classic-api", "mixes")
]


def page_param(page: Path):
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page in SLOW else [])


@pytest.fixture
def folder(tmp_path, monkeypatch, request) -> Iterator[Path]:
    """Return a working folder with the tutorial's files; afterwards no module of it is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(TUTORIAL, "python"):
        if block.file:
            write(tmp_path, block)
    if request.node.callspec.params["page"] != TUTORIAL:  # others' runs are the same with a twelfth of the steps
        path = tmp_path / "client_app.py"
        code = path.read_text(encoding="utf-8")
        assert STEPS in code
        path.write_text(code.replace(STEPS, FEWER_STEPS), encoding="utf-8")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def write(folder: Path, block: Block) -> None:
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, encoding="utf-8")
    importlib.invalidate_caches()


@pytest.mark.parametrize("page", [page_param(page) for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page, folder, monkeypatch):
    for extra in EXTRAS:
        if any(f"from {extra} import" in block.code for block in blocks(page, "python")):
            pytest.importorskip(extra, reason=f"{extra} is not installed; an extra of this package has it")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses and pickle look up what a block defines
    for block in blocks(page, "python"):
        if block.file:
            write(folder, block)
        elif not block.skipped:
            # Empty lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), vars(module))


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.parametrize("program", ["heterofl", pytest.param("flwr", marks=pytest.mark.release)])
def test_the_app_of_the_page_on_flower_apps_learns(program, tmp_path):
    """The page's files alone, in an empty folder, by the page's commands."""
    for block in blocks(APP, "python", "toml"):
        if block.file:
            write(tmp_path, block)
    (words,) = [words for _, words in commands(APP) if words[:2] == [program, "run"]]
    ports = {name: str(free_port()) for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")}
    # It ends the SuperLink too, which Flower leaves behind.
    with Processes(tmp_path, ports) as processes:
        assert processes.popen(words, "out", tmp_path).wait(600) == 0, processes.log("out")
    rounds = [round(float(own), 2) for own in re.findall(r"ROUND \d.*local-accuracy ([\d.]+)", processes.log("out"))]
    assert len(rounds) == 3, processes.log("out")
    assert rounds[-1] > max(0.6, rounds[0])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_in_a_language_that_is_checked(page):
    found = {block.language for block in fences(page)}
    assert {language for language in found if not language.startswith("{")} <= CHECKED | SHOWN
    assert all(tomllib.loads(block.code) for block in blocks(page, "toml"))
    assert all(OmegaConf.create(block.code) for block in blocks(page, "yaml"))
    assert all(json.loads(block.code) for block in blocks(page, "json"))
