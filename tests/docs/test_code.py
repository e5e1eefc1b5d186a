"""Every block of Python in the README and the documentation runs.

The blocks of a page share a namespace, in their order. A block whose first line is a comment with a path, such as
``# net.py``, is that file; the files of the tutorial are there for every page. A block whose first line is
``# not run: <reason>`` is left out.
"""

import importlib
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.docs.pages import APP, DOCS, PAGES, TUTORIAL, Block, blocks, fences, name_of

CHECKED = {"python", "bash", "toml", "yaml"}  # the first two here and in test_commands.py
SHOWN = {"diff", "text"}
EXTRAS = ("peft", "transformers")


SLOW = [DOCS / "howto" / f"{name}.md" for name in ("export", "simulate", "model", "runs")]
SLOW += [DOCS / "explain" / "guarantees.md"]  # the same run several times


def page_param(page: Path):
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page in SLOW else [])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Return a working folder with the tutorial's files; afterwards no module of it is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in [*blocks(TUTORIAL, "python"), *blocks(APP, "python")]:
        if block.file:
            write(tmp_path, block)
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
def test_the_tutorials_app_runs_by_its_command(folder):
    project = blocks(APP, "toml")[0].code
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    heterofl = str(Path(sys.executable).parent / "heterofl")
    command = [heterofl, "run", "--app", ".", "--clients", "5", "--grid", "local", "--set", "num-rounds=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_in_a_language_that_is_checked(page):
    found = {block.language for block in fences(page)}
    assert {language for language in found if not language.startswith("{")} <= CHECKED | SHOWN
    assert all(tomllib.loads(block.code) for block in blocks(page, "toml"))
    assert all(OmegaConf.create(block.code) for block in blocks(page, "yaml"))
