"""``heterofl export`` on the folder of a real run, made small; and what it says where there is nothing to export."""

import csv
import json
import shutil

import pytest
import torch

from heterofl_flwr.app.cli.export import RunModels, checked_inputs, preprocessing
from heterofl_flwr.app.cli.main import main
from heterofl_flwr.data import load_dataset
from heterofl_flwr.data.text import Texts, to_text
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import RunFolder

QUICK = ("--formats", "safetensors", "--no-latency")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of two levels on the digits."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    settings = ("model.hidden=8,8", "train.epochs=1", "sample.fraction=0.2", "engine.device=cpu", "run.callbacks=")
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


def test_one_training_gives_a_model_for_each_level(run, capsys):
    assert main(["export", str(run)]) == 0
    exports = run / "exports"
    assert sorted(path.name for path in exports.iterdir()) == ["README.md", "a", "c", "table.csv"]
    for level in "ac":
        names = {path.name for path in (exports / level).iterdir()}
        assert names == {"manifest.json", "model.safetensors", "model.pt2", "model.onnx"}
    with (exports / "table.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["a"]["accuracy"]) == pytest.approx(RunFolder(run).history()[-1].evaluate["global-accuracy"])
    assert int(rows["a"]["parameters"]) > int(rows["c"]["parameters"])
    assert all(float(rows["a"][f"{name} ms"]) > 0 for name in ("safetensors", "pt2", "onnx"))
    out = capsys.readouterr().out
    assert "onnx ms" in out
    assert f"{float(rows['c']['accuracy']):.1%}".replace("%", " %") in out


def test_the_manifest_says_how_to_use_the_model(run):
    assert main(["export", str(run), "--level", "c", *QUICK]) == 0
    manifest = json.loads((run / "exports" / "c" / "manifest.json").read_text())
    assert (manifest["level"], manifest["rate"], manifest["server_round"]) == ("c", 0.25, 1)
    assert manifest["classes"] == {"number": 10, "names": list("0123456789")}
    assert manifest["latency"] is None
    # Raw digits, prepared as the manifest says, are what the run evaluated.
    digits = load_dataset("digits")
    normal = manifest["preprocessing"]
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().images).float()[None] / 16
    prepared = (pixels - normal["mean"][0]) / normal["deviation"][0]
    apart = (digits.test.inputs[:20] - prepared).abs().amax((2, 3))  # (test images, all images)
    assert apart.min(1).values.max() < 1e-5


def test_a_level_may_be_a_rate_and_go_elsewhere(run, tmp_path):
    assert main(["export", str(run), "--level", "1/4", "--out", str(tmp_path / "out"), *QUICK]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"c", "table.csv", "README.md"}
    assert not (run / "exports").exists()
    assert main(["export", str(run), "--level", "all", "--out", str(tmp_path / "out"), *QUICK]) == 0
    assert "| a |" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_not_there_is_an_error(run, tmp_path, capsys):
    assert "--level b: the run has no such model; expected all, or some of a (1), c (0.25)" in rejected(
        capsys, run, "--level", "b"
    )
    assert "formats are tflite; expected some of safetensors, pt2, onnx" in rejected(capsys, run, "--formats", "tflite")
    assert "is no folder of a run" in rejected(capsys, tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "is a file; expected a folder" in rejected(capsys, run, "--out", tmp_path / "file")
    assert not (run / "exports").exists()


def test_the_error_of_an_unfinished_run_says_how_to_go_on(run, capsys):
    shutil.rmtree(run / "models")
    said = rejected(capsys, run)
    assert "has no models yet: it has done 1 of 1 rounds" in said
    assert f"heterofl run --resume {run}" in said


def rewritten(run, **changes):
    path = run / "settings.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": {**content["settings"], **changes}}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"server.shared": "linear.*"}, "keep parameters of their own"),
        ({"server.strategy": "fedh2l"}, "keep parameters of their own"),
        ({"lr": 0.1}, "is of another app"),
    ],
)
def test_runs_without_a_model_of_each_level_are_rejected(run, capsys, changes, text):
    rewritten(run, **changes)
    shutil.rmtree(run / "models")
    assert text in rejected(capsys, run)


def test_batch_norm_that_was_not_measured_is_an_error(run, capsys):
    (run / "models" / "c.moments.safetensors").unlink()
    said = rejected(capsys, run, *QUICK)
    assert "model c of" in said
    assert "evaluate.levels=last" in said
    assert [path.name for path in (run / "exports").iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["c.json", "c.safetensors", "c.moments.safetensors"])
def test_a_damaged_model_is_an_error(run, capsys, name):
    (run / "models" / name).write_bytes(b"{")
    assert f"{name} cannot be read" in rejected(capsys, run, "--level", "c", *QUICK)


def test_a_model_that_the_settings_do_not_make_is_an_error(run, capsys):
    rewritten(run, **{"model.hidden": "8,16"})
    assert "model a of" in (said := rejected(capsys, run, *QUICK))
    assert "features.conv2.bias: (8,), expected (16,)" in said


def test_data_that_are_missing_are_an_error(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HETEROFL_DATA", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    rewritten(run, **{"data.name": "mnist", "data.root": "/not/here"})
    assert "empty" in rejected(capsys, run, *QUICK)


def test_a_run_with_families_has_a_model_of_each(run, tmp_path):
    for name in ("a", "c"):
        facts = json.loads((run / "models" / f"{name}.json").read_text())
        for family in ("cnn", "mlp"):
            (run / "models" / f"{family}-{name}.json").write_text(json.dumps({**facts, "family": family}))
            for end in ("safetensors", "moments.safetensors"):
                shutil.copy(run / "models" / f"{name}.{end}", run / "models" / f"{family}-{name}.{end}")
        (run / "models" / f"{name}.json").unlink()
    models = RunModels(run)
    assert models.chosen(["c"]) == ["cnn-c", "mlp-c"]
    assert models.chosen(["mlp-a", "0.25"]) == ["cnn-c", "mlp-a", "mlp-c"]
    with pytest.raises(ConfigError, match=r"expected all, or some of cnn-a \(1\), cnn-c \(0.25\), mlp-a"):
        models.chosen(["d"])
    (folder,) = models.export(["cnn-c"], tmp_path, formats=["safetensors"], runs=0)
    assert json.loads((folder / "manifest.json").read_text())["family"] == "cnn"


def test_a_text_is_checked_as_its_model_sees_it():
    lines = [" ".join(f"w{number % 7}" for number in range(40))] * 100
    dataset = to_text("text", Texts(lines, "train"), Texts(lines, "test"), {"train": 100, "test": 10})
    inputs = checked_inputs(dataset.test, 0)
    assert inputs.shape == (10, 64)
    assert inputs.eq(dataset.test.reading.hides_as).float().mean().item() == pytest.approx(0.15, abs=0.04)
    assert preprocessing(dataset)["kind"] == "tokens"
    assert dataset.names[2:4] == ("w0", "w1")
