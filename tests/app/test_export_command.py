"""``heterofl export`` on the folder of a real run, made small; and what it says where there is nothing to export."""

import json
import re
import shutil

import pytest
import torch

from heterofl_flwr.app.export import inputs_of, preparation
from heterofl_flwr.app.main import main
from heterofl_flwr.common.user_code import VARIABLE
from heterofl_flwr.data import load_dataset
from heterofl_flwr.data.text import Texts, to_text
from heterofl_flwr.export import load_state
from heterofl_flwr.nn import build_model
from heterofl_flwr.report import load_model
from heterofl_flwr.runs.folder import RunFolder

QUICK = ("--formats", "safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of two levels on the digits."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    settings = (
        "model.hidden=8,8",
        "train.epochs=1",
        "train.batch-size=50",
        "sample.fraction=0.2",
        "engine.device=cpu",
        "run.callbacks=",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    asked = ["run", "--grid", "local", "--parallel", "1", "--mix", "a1-c1", "--rounds", "1", "--out", str(path)]
    assert main([*asked, *options]) == 0
    return path


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run's folder."""
    return shutil.copytree(trained, tmp_path / "mine")


def rejected(capsys, *arguments) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def rewritten(run, **changes):
    path = run / "settings.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": {**content["settings"], **changes}}))


def test_one_training_gives_a_model_for_each_level(run, capsys):
    assert main(["export", str(run), *QUICK]) == 0
    accuracy = RunFolder(run).history()[-1].evaluate["global-accuracy"]
    head, _, row, *_ = [line for line in (run / "exports" / "a" / "README.md").read_text().splitlines() if "|" in line]
    assert head == "| model | rate | parameters | accuracy | safetensors |"
    assert row.startswith("| a | 1 | ")
    assert f"| {100 * accuracy:.1f} % |" in row
    assert re.search(r"^c +0.25 ", capsys.readouterr().out, re.MULTILINE)


def test_code_that_only_a_run_calls_needs_no_trust(run, capsys):
    for name, code in (("run.callbacks", 0), ("evaluate.metric", 2)):
        rewritten(run, **{name: "not_installed:Own"})
        assert main(["export", str(run), *QUICK]) == code
    assert "evaluate.metric=not_installed:Own" in capsys.readouterr().err


@pytest.mark.slow
def test_a_level_is_exported_in_every_format(run):
    assert main(["export", str(run), "--level", "c"]) == 0
    names = {path.name for path in (run / "exports" / "c").iterdir()}
    assert names == {"model.safetensors", "model.pt2", "model.onnx", "README.md"}


def test_a_model_and_inputs_of_ones_own_are_named_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    """As of a Flower app of the user's, whose folder has no settings that name a model."""
    about = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**about, "settings": {}}))
    (tmp_path / "my_net.py").write_text(
        "import torch\nfrom heterofl_flwr.nn import build_model\n"
        "build = build_model('cnn', hidden=(8, 8), norm='sbn', channels=1, classes=10)\n"
        "example = lambda: torch.rand(4, 1, 8, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, '["", []]')
    assert "--model and --inputs go together" in rejected(capsys, run, "--model", "my_net:build")
    assert main(["export", str(run), "--model", "my_net:build", "--inputs", "my_net:example", *QUICK]) == 0
    assert "my_net:example" in (run / "exports" / "c" / "README.md").read_text()
    build = build_model("cnn", hidden=(8, 8), norm="sbn", channels=1, classes=10)
    exported, trained = (
        load_state(build(0.25), run / "exports" / "c" / "model.safetensors"),
        load_model(RunFolder(run), "c", build),
    )
    assert torch.equal(exported(inputs := torch.rand(4, 1, 8, 8)), trained(inputs))


def test_the_page_says_how_to_prepare_inputs(run):
    assert main(["export", str(run), "--level", "c", *QUICK]) == 0
    page = (run / "exports" / "c" / "README.md").read_text()
    assert (
        page.splitlines()[0]
        == f"# Model c of the run in `mine`, after round {RunFolder(run).history()[-1].server_round}"
    )
    assert page.endswith("Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.\n")
    # Raw digits, prepared as the page says, are what the run evaluated.
    mean, deviation = (float(re.search(rf"{word} ([\d.]+\d)", page)[1]) for word in ("its mean", "its deviation"))
    from sklearn.datasets import load_digits

    prepared = (torch.from_numpy(load_digits().images).float()[None] / 16 - mean) / deviation
    apart = (load_dataset("digits").test.inputs[:20] - prepared).abs().amax((2, 3))  # (test images, all images)
    assert apart.min(1).values.max() < 1e-5


def test_a_level_alone_may_go_elsewhere(run, tmp_path, capsys):
    assert main(["export", str(run), "--level", "c", "--out", str(tmp_path / "out"), *QUICK]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"c"}
    assert not (run / "exports").exists()
    assert "has no model 'b'; expected one of a, c" in rejected(capsys, run, "--level", "b")


@pytest.mark.parametrize("options", [[], ["--model", "task:build", "--inputs", "task:example"]])
def test_a_folder_that_is_not_there_is_named(capsys, tmp_path, options):
    assert f"there is no folder {tmp_path / 'none'}" in rejected(capsys, tmp_path / "none", *options)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "has no models: a run writes its models at its end"),
        ({"lr": 0.1}, "by another app or version, whose settings lr are not known"),
    ],
)
def test_runs_without_a_model_of_each_level_are_rejected(run, capsys, changes, text):
    rewritten(run, **changes)
    shutil.rmtree(run / "models")
    assert text in rejected(capsys, run)


def test_a_text_is_checked_as_its_model_sees_it():
    lines = [" ".join(f"w{number % 7}" for number in range(40))] * 100
    dataset = to_text("text", Texts(lines, "train"), Texts(lines, "test"), {"train": 100, "test": 10})
    inputs = inputs_of(dataset.test, 0)
    assert inputs.shape == (10, 64)
    assert inputs.eq(dataset.test.reading.hides_as).float().mean().item() == pytest.approx(0.15, abs=0.04)
    assert "words by number" in preparation(dataset)
    assert dataset.names[2:4] == ("w0", "w1")


def test_names_of_a_strangers_run_do_not_command_the_terminal(run, capsys):
    history = run / "history.jsonl"
    history.write_text(
        history.read_text().replace('"evaluate": {', '"evaluate": {"\\u001b]0;x\\u0007-accuracy": 0.5, ')
    )
    assert "\x1b]0;x\x07-accuracy" in RunFolder(run).history()[-1].evaluate
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "]0;x" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    changed = json.loads((run / "models" / "c.json").read_text())
    (run / "models" / "c.json").write_text(json.dumps({**changed, "parameters": "\x1b[2J"}))
    assert main(["export", str(run), *QUICK]) == 2
    assert all(line.isprintable() for line in "".join(capsys.readouterr()).splitlines())
