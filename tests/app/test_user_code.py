"""Code in the folder from which a command is called: only what its command line names is loaded."""

import json
import sys

import pytest

from heterofl_flwr.app.main import MISUSED, main
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import VARIABLE, load_function, named_modules

NET = """
import torch
from helper_of_net import HIDDEN
from heterofl_flwr.core import width

def build(rate):
    hidden = width(HIDDEN, rate)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.Linear(hidden, 10))
"""
SHORT = ("--clients", "2", "--mix", "a1", "num-rounds=1", "train.epochs=1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with a model, a module that it imports, and one that libraries may look for."""
    (tmp_path / "user_net.py").write_text(NET)
    (tmp_path / "helper_of_net.py").write_text("HIDDEN = 8")
    (tmp_path / "optional_of_a_library.py").write_text("raise SystemExit('a stranger was here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, '["", []]')
    yield tmp_path
    for name in ("user_net", "helper_of_net", "optional_of_a_library"):
        sys.modules.pop(name, None)


def test_a_command_loads_what_its_line_names_and_nothing_else(folder):
    with pytest.raises(ModuleNotFoundError):
        import user_net  # noqa: F401
    assert main(["run", *SHORT, "--set", "model.name=user_net:build", "--out", "run"]) == 0
    assert load_function("user_net:build", "the model")(0.5)[1].out_features == 4
    with pytest.raises(ModuleNotFoundError):
        import optional_of_a_library  # noqa: F401


def test_warnings_of_a_run_are_on_the_terminal_too(folder, capsys):
    """Of a seed that draws nothing, and of levels without clients; not of a round, whose line names the failures."""
    net = NET.replace("def build(rate)", "import functools\n\n@functools.cache\ndef build(rate)")
    (folder / "user_net.py").write_text(net)
    small = ("--mix", "a1-b1-c1", "evaluate.levels=false", "train.epochs=1", "num-rounds=1")
    assert main(["run", "--clients", "2", *small, "--set", "model.name=user_net:build", "--out", "run"]) == 0
    mix, seed = sorted(capsys.readouterr().err.splitlines())
    assert mix.startswith("warning: 2 clients for the 3 parts of the mix a1-b1-c1, so some level has none")
    assert seed.startswith("warning: build returns equal parameters for each seed, so seed=0 does not draw")
    assert seed.removeprefix("warning: ") in (folder / "run" / "logs" / "flower.log").read_text()


def test_the_folder_of_a_run_names_no_code_unless_it_is_trusted(folder, monkeypatch, capsys):
    assert main(["run", *SHORT, "--set", "model.name=user_net:build", "--out", "run"]) == 0
    assert f"--resume {folder / 'run'} --trust" in capsys.readouterr().out
    settings = folder / "run" / "settings.json"
    content = json.loads(settings.read_text())
    content["settings"]["model.name"] = "optional_of_a_library:build"
    settings.write_text(json.dumps(content))
    monkeypatch.setenv(VARIABLE, '["", []]')
    for words in (["run", "--resume", "run", "num-rounds=2"], ["export", "run"]):
        assert main(words) == MISUSED
        error = capsys.readouterr().err
        assert "model.name=optional_of_a_library:build" in error
        assert "--trust" in error
    assert main(["report", "run"]) == 0  # which needs no code
    content["settings"]["model.name"] = "user_net:build"
    settings.write_text(json.dumps(content))
    assert main(["run", "--resume", "run", "--trust", "num-rounds=2"]) == 0


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        *(("net:build", {"net"}), ("pkg.mod:f,other:g", {"pkg", "other"}), ("b=0.7:0.75", set())),
        *(("host:6379", set()), ("größe:Net.build(2)", {"größe"}), ("a:b(1), c:d", {"a", "c"})),
    ],
)
def test_functions_are_named_as_module_and_function(text, modules):
    assert named_modules([text]) == modules


@pytest.mark.parametrize("reference", ["{}.build", "{}:", "{}", "{}:build/x"])
def test_only_what_is_named_as_a_function_is_loaded(tmp_path, monkeypatch, reference):
    """Else a stranger's settings, which are searched for such names, could name code in another form."""
    (tmp_path / "imported_by_mistake.py").write_text("raise SystemExit('a stranger was here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be loaded .*: name a function as 'module:function'"):
        load_function(reference.format("imported_by_mistake"), "evaluate.metric")
