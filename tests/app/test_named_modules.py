"""A folder of a stranger: its files are not imported, and its settings name no code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from heterofl_flwr.app.main import main
from heterofl_flwr.common.named_modules import VARIABLE, code_references
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.flat import DEFAULTS

STRANGER = "from pathlib import Path\nPath('executed').write_text('')\n"
DATA = (
    "import torch\ndef load():\n    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 2\n    return (x, y), (x, y)\n"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "{}")


@pytest.mark.parametrize("command", ["report", "export", "run --resume"])
@pytest.mark.slow
def test_an_optional_import_does_not_resolve_in_the_folder(command, tmp_path):
    RunFolder(tmp_path).start(dict(DEFAULTS))
    for name in ("brotli", "brotlicffi", "chardet", "simplejson", "socks", "zstandard"):
        if subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd="/", capture_output=True, check=False
        ).returncode:
            (tmp_path / f"{name}.py").write_text(STRANGER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-m", "heterofl_flwr", *command.split(), "."]
    subprocess.run(words, cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=300)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("words", [["run", "--resume", "."], ["export", "."]])
@pytest.mark.parametrize("key", ["data.name", "model.name", "run.callbacks"])
def test_settings_of_a_folder_name_code_only_with_trust(words, key, tmp_path, capsys):
    (tmp_path / "stranger.py").write_text(STRANGER)
    RunFolder(tmp_path).start({**DEFAULTS, key: "stranger:load"})
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "--trust" in error
    assert f"{key}=stranger:load" in error
    assert not (tmp_path / "executed").exists()


def test_a_module_that_the_command_line_names_is_the_only_one_loaded(tmp_path, capsys):
    (tmp_path / "chosen_data.py").write_text(
        f"{DATA}try:\n    import neighbour_module\nexcept ImportError:\n    pass\n"
    )
    (tmp_path / "neighbour_module.py").write_text(STRANGER)
    words = ["run", "--grid", "local", "--clients", "2", "--rounds", "1", "--out", "run", "mix=e"]
    assert main([*words, "data.name=chosen_data:load", "run.callbacks="]) == 0
    assert not (tmp_path / "executed").exists()
    assert json.loads(os.environ[VARIABLE]) == {"chosen_data": str(tmp_path)}


def test_functions_of_this_package_need_no_trust():
    settings = {"data.name": "heterofl_flwr.experiments.lora:load", "model.name": "mine.models:net"}
    assert code_references(settings) == {"model.name": ["mine.models:net"]}
