"""The command ``heterofl`` as a whole."""

import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from heterofl_flwr.app.main import COMMANDS, MISUSED, status_of
from heterofl_flwr.app.profile import PROFILED
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.models import MODELS, PAPER
from heterofl_flwr.settings.validate import DEFAULTS, SPECS, read_assignments, read_config

ROOT = Path(__file__).parents[2]


def printed(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_commands_help_loads_nothing_heavy():
    code = "import sys; from heterofl_flwr.app.main import parser; parser(); print(*sys.modules)"
    assert {"torch", "pydantic", "flwr", "cryptography"}.isdisjoint(printed("-c", code).split())
    text = printed("-m", "heterofl_flwr", "--help")
    assert set(COMMANDS) <= set(text.split())
    assert printed("-m", "heterofl_flwr", "--version").startswith("heterofl-flwr ")


@pytest.mark.parametrize(
    ("words", "status"), [(["profile", "cifar11"], 2), (["settings"], 0), (["settings", "--format", "toml"], 0)]
)
def test_settings_are_listed_and_names_are_refused_before_torch_loads(words, status):
    code = (
        "import sys; from heterofl_flwr.app.main import main\n"
        f"try: status = main({words})\nexcept SystemExit as end: status = end.code\nprint(status, *sys.modules)"
    )
    *said, last = printed("-c", code).splitlines()
    found, *loaded = last.split()
    assert (int(found), len(said) >= len(DEFAULTS)) == (status, status == 0)
    assert {"torch", "pydantic", "flwr"}.isdisjoint(loaded)


def test_what_the_system_refuses_is_no_traceback(monkeypatch, capsys):
    assert status_of("mine", lambda: int(Path("/no/such").read_text())) == MISUSED
    assert capsys.readouterr().err == "mine: [Errno 2] No such file or directory: '/no/such'\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert status_of("mine", lambda: 0) == 0


def test_a_path_that_is_not_utf8_is_printed_with_escapes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(stdout := BytesIO(), "utf-8"))
    assert status_of("mine", lambda: sys.stdout.write(os.fsdecode(b"/r/\xff")) and 0) == 0
    assert stdout.getvalue() == rb"/r/\udcff"


def test_an_error_sends_the_terminal_no_commands(capsys):
    def fail():
        raise ConfigError("no setting \x1b[2Jx")

    assert status_of("mine", fail) == MISUSED
    assert capsys.readouterr().err == "mine: no setting \N{REPLACEMENT CHARACTER}[2Jx\n"


VALUES = {
    **{
        "train.lr=0.5": 0.5,
        "train.lr=fast": "fast",
        "num-rounds=7": 7,
        "seed=1.5": 1.5,
        " seed =1": 1,
        "data.name = mnist": "mnist",
    },
    **{"model.scaler=false": False, "data.name=mnist": "mnist", 'data.name="mnist"': "mnist", "run.dir=[1]": "[1]"},
    **{"data.root=2024": "2024", "data.root=/a=b c": "/a=b c", "not.ours=3": 3, "not.ours=text": "text"},
    **{"train.lr=0.5\nseed = 3": "0.5\nseed = 3", f"seed={'9' * 5000}": "9" * 5000},
    **{"train.milestones=100": 100, "train.milestones=100,150": "100,150", "train.mask-fill=-inf": "-inf"},
}


def test_values_are_what_their_settings_can_be():
    for text, value in VALUES.items():
        ((key, found),) = read_assignments([text]).items()
        assert key == text.partition("=")[0].strip()
        assert (found, type(found)) == (value, type(value)), text
    for text in ("train.lr", "=3", ""):
        with pytest.raises(ConfigError, match="expected key=value"):
            read_assignments([text])


def test_a_file_of_settings_may_be_nested_or_dotted(tmp_path):
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read"):
        read_config(path)
    for content in (b"seed = ", b"run.dir = '\xff'"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.toml cannot be read"):
            read_config(path)
    path.write_text("seed = 3\ntrain.lr = 0.1\n[data]\nname = 'mnist'\n")
    assert read_config(path) == {"seed": 3, "train.lr": 0.1, "data.name": "mnist"}


def test_models_and_data_sets_are_named_where_users_look_for_them():
    assert set(PROFILED) == {*PAPER, "digits", *MODELS}
    names, _, _ = SPECS["model.name"].help.partition(", or a function")
    assert set(names.split(", ")) == set(MODELS)
