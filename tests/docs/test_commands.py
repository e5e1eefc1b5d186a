"""Every shell command in the README and the documentation exists, with the options that it is given."""

import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from heterofl_flwr.app.main import parse
from heterofl_flwr.settings.validate import from_flat, read_assignments
from tests.docs.pages import PAGES, ROOT, commands, name_of
from tests.flower_internals import get_flwr_command

BUILT_IN = {"cd", "export", "kill", "."}
OF_THE_SYSTEM = {"curl", "cmp", "nginx", "sed", "ssh"}  # which no package of ours brings


def heterofl(words: Sequence[str]) -> None:
    """Parse it as the command does; settings must exist and have a value that they can have."""
    args = parse(words)
    if getattr(args, "app", None) is None:
        from_flat(read_assignments(getattr(args, "set", [])))


def make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = re.findall(r"^([a-z-]+(?=:)|[A-Z_]+(?= \?=))", makefile, re.MULTILINE)  # targets and variables
    assert {word.partition("=")[0] for word in words} <= set(known)


def flwr(words: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typer's own, about how Flower uses it

        command = typer.main.get_command(get_flwr_command()).commands[words[0]]
        command.make_context(words[0], list(words[1:]))


def python(words: Sequence[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "page", "exec")
        return
    assert words[0] == "-m"
    assert find_spec(words[1])


def pip(words: Sequence[str]) -> None:
    assert words[0] == "install"
    for name in words[1:]:
        own = re.fullmatch(r"heterofl-flwr\[(.+)\]", name)
        assert own is None or set(own[1].split(",")) <= extras()


@cache
def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


KNOWN: Mapping[str, Callable[[Sequence[str]], None]] = {
    "heterofl": heterofl,
    "make": make,
    "flwr": flwr,
    "python": python,
    "pip": pip,
}


def program_of(words: Sequence[str]) -> str:
    return Path(words[0]).name or words[0]


ALL = [
    pytest.param(words, id=f"{name_of(page)}:{line}-{program_of(words)}")
    for page in PAGES
    for line, words in commands(page)
]
OTHERS = [own for own in ALL if program_of(own.values[0]) not in {*KNOWN, *BUILT_IN, *OF_THE_SYSTEM}]


@pytest.mark.parametrize("words", ALL)
def test_command_exists(words):
    program = program_of(words)
    if program in KNOWN:
        KNOWN[program](words[1:])
    else:
        assert program in BUILT_IN | OF_THE_SYSTEM or path_of(program), f"{program} is not installed"


@pytest.mark.slow
@pytest.mark.parametrize("words", OTHERS)
def test_options_of_other_programs_exist(words):
    program = program_of(words)
    subcommand = [word for word in words[1:2] if program == "ray"]
    text = help_of(program, *subcommand)
    missing = [word for word in words[1:] if word.startswith("--") and word not in text]
    assert not missing


@cache
def help_of(program: str, *subcommand: str) -> str:
    done = subprocess.run(
        [path_of(program), *subcommand, "--help"], capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout


def test_the_install_page_has_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| extra |")
    firsts = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert set(re.findall(r"`([\w-]+)`", " ".join(firsts))) == extras() - {"all", "dev"}


def test_make_takes_pytorch_alone_from_another_index():
    words = ["make", "-n", "install", "VENV=no-such", "TORCH_INDEX=https://example.org/cpu"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    (line,) = (line for line in shown if "example.org" in line)
    assert line.count(" --index-url https://example.org/cpu torch torchvision") == 2  # for uv, or else for pip
    assert "example.org" not in subprocess.run(words[:-1], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def path_of(program: str) -> str | None:
    return shutil.which(program, path=str(Path(sys.executable).parent))
