"""What ``heterofl run`` makes of its arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heterofl_flwr.app import preflight
from heterofl_flwr.app.client_resources import gpus_per_client
from heterofl_flwr.app.main import main
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import from_flat, to_flat

SAMPLE = Path(__file__).parent / "sample_app"


@pytest.fixture
def asked(started, monkeypatch, tmp_path):
    """Run the command in a folder of its own; return what it asked for."""
    monkeypatch.setattr(preflight, "check_task", lambda task, clients: None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def ask(*arguments: str):
        assert main(["run", *arguments]) == 1
        return started[-1]

    return ask


def share_of(request) -> tuple[int, float, int | None]:
    """Return what each client gets of the machine on Ray."""
    return request.cpus, gpus_per_client(request), request.parallel


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("1 / 0", "division by zero"),
        ("0.5", "evaluate.metric returned 0.5; expected a mapping of names to numbers"),
        ("{'by-class': [0.1, 0.2]}", "expected a mapping of names to numbers"),
        ("{'global-accuracy': 1.0}", "evaluate.metric returned global-accuracy, which this app measures"),
    ],
)
def test_a_round_in_which_nobody_evaluates_is_a_failure(tmp_path, monkeypatch, capsys, metric, why):
    (tmp_path / "own_metric.py").write_text(f"def metric(model, inputs, targets):\n    return {metric}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)
    small = ("model.hidden=4,8", "train.epochs=1", "run.callbacks=", "evaluate.levels=false", "mix=e")
    assert main(["run", "--clients", "2", "--rounds", "1", *small, "evaluate.metric=own_metric:metric"]) == 1
    err = capsys.readouterr().err
    assert "heterofl: in round 1 no client evaluated the global model: partition 0 and 1 more: " in err
    assert why in err


def test_alone_it_is_the_quickstart(asked, tmp_path):
    request, log = asked()
    assert (request.clients, request.app, request.grid, log) == (20, None, "local", False)
    assert share_of(request) == (1, 0.0, None)
    assert request.out.parent == tmp_path / "runs"
    assert request.out.name.startswith("digits-")
    own = {"run.dir": str(request.out), "sample.min-nodes": 20, "engine.window": 64}
    assert request.config == to_flat(from_flat({})) | own


@pytest.mark.parametrize(
    "words",
    ["--data mnist --mix a1-e9 --rounds 3 --seed 7 train.lr=0.5", "mix=a1-e9 --data=mnist --set seed=7 num-rounds=3"],
)
def test_settings_are_options_or_words_as_of_hydra(asked, words):
    request, _ = asked(*words.split(), "--set", "train.lr=0.5")
    settings = from_flat(request.config)
    assert (settings.data.name, str(settings.mix), settings.num_rounds, settings.seed) == ("mnist", "a1-e9", 3, 7)
    assert settings.train.learning_rate == 0.5
    assert request.clients == 100
    assert request.out.name.startswith("mnist-")


def test_paths_are_made_absolute(asked, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    request, _ = asked("--data", "pictures", "--set", "data.root=hub", "--out", "here")
    assert request.config["data.name"] == str(tmp_path / "pictures")
    assert request.config["data.root"] == str(tmp_path / "hub")
    assert request.config["run.dir"] == str(tmp_path / "here") == str(request.out)
    monkeypatch.setenv("HETEROFL_DATA", "elsewhere")
    (tmp_path / "digits").mkdir()
    config = asked()[0].config
    assert (config["data.root"], config["data.name"]) == (str(tmp_path / "elsewhere"), "digits")


def test_it_waits_for_all_clients_unless_told(asked):
    assert asked("--clients", "7")[0].config["sample.min-nodes"] == 7
    given = ("--set", "sample.min-nodes=3", "--set", "engine.window=0")
    config = asked("--clients", "7", *given, "--out", "b")[0].config
    assert (config["sample.min-nodes"], config["engine.window"]) == (3, 0)


def test_another_app_gets_only_what_is_said(asked):
    request, log = asked("--app", str(SAMPLE), "--clients", "5", "--set", "rounds=3", "--set", "note.text=hi")
    assert request.config == {"fault": "", "rounds": 3, "note.text": "hi"}
    assert (request.app, request.clients, log) == (SAMPLE, 5, True)
    assert request.out.name.startswith("sample_app-")


@pytest.mark.usefixtures("machine")
def test_this_packages_app_writes_its_results_into_the_folder_when_it_is_named(tmp_path, capsys):
    parts = '[tool.flwr.app.components]\nserverapp = "{0}.server_app:app"\nclientapp = "{0}.client_app:app"\n'
    small = 'mix = "e"\nnum-rounds = 1\nmodel.hidden = "4,8"\ntrain.epochs = 1\nrun.callbacks = ""\nrun.dir = ""\n'
    table = (SAMPLE / "pyproject.toml").read_text().partition("[tool.flwr.app.components]")[0]
    (tmp_path / "pyproject.toml").write_text(
        f"{table}{parts.format('heterofl_flwr.app')}[tool.flwr.app.config]\n{small}"
    )
    assert main(["run", "--app", ".", "--out", "mine"]) == 0
    assert len(RunFolder("mine").history()) == 1
    assert f"report: {tmp_path / 'mine' / 'report.html'}" in capsys.readouterr().out


def test_settings_of_another_app_have_its_own_types(asked, tmp_path, capsys):
    table = (SAMPLE / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(f"{table}data.root = 1\nshuffle = true\n")
    request, _ = asked("--app", ".", "--set", "data.root=2", "shuffle=false")
    assert (request.config["data.root"], request.config["shuffle"]) == (2, False)
    assert main(["run", "--app", ".", "--set", "shuffle=False"]) == 2
    assert "shuffle: found 'False'; expected true or false, as in the app in" in capsys.readouterr().err


def test_resume_goes_on_with_the_settings_and_clients_of_the_run(asked, tmp_path, capsys):
    first, _ = asked("--out", "mine", "--clients", "9", "--seed", "5", "--rounds", "2")
    of_an_older_version = {**first.config, "train.factor": 0.1}
    RunFolder(tmp_path / "mine").start(of_an_older_version, about={"clients": 9})
    more, _ = asked("--resume", "mine", "--rounds", "4")
    changed = {"num-rounds": 4, "run.resume": True}
    assert more.config == dict(first.config) | changed
    assert (more.clients, more.out) == (9, first.out)
    assert main(["run", "--resume", "mine", "--clients", "5"]) == 2
    assert f"--clients is 5, but the run in {first.out} has 9" in capsys.readouterr().err


def test_a_run_without_a_note_goes_on_with_clients_named(asked, tmp_path, capsys):
    first, _ = asked("--out", "mine", "--clients", "9")
    RunFolder(tmp_path / "mine").start(first.config)
    assert main(["run", "--resume", "mine"]) == 2
    assert "does not record its number of clients: give the number with --clients" in capsys.readouterr().err
    assert asked("--resume", "mine", "--clients", "9")[0].clients == 9


def test_another_app_resumes_in_its_own_code(capsys, asked):
    assert main(["run", "--resume", "mine", "--app", str(SAMPLE)]) == 2
    assert f"--app is {SAMPLE}: start it with --app alone, and let its ServerApp load" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_written_over(capsys, tmp_path, asked):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "history.jsonl").write_text("")
    assert main(["run", "--out", "my run"]) == 2
    assert f"go on with it (--resume '{tmp_path / 'my run'}')" in capsys.readouterr().err


def test_each_actor_gets_a_gpu_unless_told(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for words, share in (
        ("", (1, 1.0, None)),
        ("--parallel 4", (1, 0.5, 4)),
        ("--gpus 0.25", (1, 0.25, None)),
        ("--gpus 0 --cpus 2 --parallel 3", (2, 0.0, 3)),
        ("--set engine.device=cpu", (1, 0.0, None)),
        (f"--app {SAMPLE}", (1, 0.0, None)),
    ):
        assert share_of(asked("--grid", "ray", *words.split())[0]) == share


def test_ray_runs_what_one_process_cannot(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert asked("--gpus", "0.25")[0].grid == "ray"
    for number, grid in (("2", "ray"), ("1", "local")):
        assert asked("--gpus", "0", "--parallel", number, "--out", f"d{number}")[0].grid == grid
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert asked("--gpus", "0", "--out", "b")[0].grid == "ray"
    assert asked("--grid", "local", "--out", "c")[0].grid == "local"


def test_a_share_of_a_gpu_is_not_ignored_in_one_process(asked, capsys):
    assert main(["run", "--grid", "local", "--gpus", "0.25"]) == 2
    assert "shares of a GPU are for --grid ray" in capsys.readouterr().err
    assert asked("--grid", "local", "--gpus", "1")[0].grid == "local"


@pytest.mark.parametrize("share", ["nan", "inf", "-1", "1.5", "half"])
def test_a_wrong_share_of_a_gpu_is_refused_before_anything_starts(share, capsys):
    with pytest.raises(SystemExit):
        main(["run", "--gpus", share])
    assert (
        f"argument --gpus: found {share!r}, expected a share such as 0.25, or a whole number" in capsys.readouterr().err
    )


def test_a_missing_ray_is_said_before_anything_starts(asked, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "--grid", "ray"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip install 'heterofl-flwr[simulation]' (in a checkout '.[simulation]'), or use --grid local" in said.err


@pytest.mark.parametrize("words", [("run", "train.lr", "0.5"), ("settings", "train.lr"), ("profile", "mnist", "mix=a")])
def test_words_that_are_no_settings_raise(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert "unrecognized arguments: " in error
    assert ("a setting is one word with its value, such as train.lr=0.05" in error) == (words[0] != "profile")


@pytest.mark.parametrize("words", ["mix=a --mix b", "--set seed=1 num-rounds=2 seed=2"])
def test_a_setting_by_a_word_and_by_an_option_raises(words, capsys):
    with pytest.raises(SystemExit):
        main(["run", *words.split()])
    assert ": set by a word and by an option; expected one of the two\n" in capsys.readouterr().err


def test_as_a_module_it_does_not_look_into_the_folder(tmp_path):
    for name in ("argparse", "pathlib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was here')")
    words = [sys.executable, "-m", "heterofl_flwr", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
