"""The paper's jobs and its printed numbers."""

import csv

import pytest

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import from_flat
from simulations.paper.printed import FILES, VARIABLE, Job, differences, job_of, paper_folder, read_cells
from simulations.results.runs import short_mix


@pytest.mark.parametrize(
    ("mix", "name"),
    [
        ("a1-b1-c1-d1-e1", "a-b-c-d-e"),
        ("a5-e5", "a-e"),
        ("e3", "e"),
        ("a2-e8", "a1-e4"),
        ("a1-e9", "a1-e9"),
        ("1.0x1-0.3x1", "a1-0.3x1"),
    ],
)
def test_mixes_are_named_as_in_the_paper(mix, name):
    assert short_mix(Mix.parse(mix)) == name


def test_a_job_is_read_from_settings():
    settings = from_flat({"data.name": "mnist", "data.split": "non-iid-2", "mix": "a1-e1"})
    assert job_of(settings) == Job("mnist", "noniid", "a-e", "fix", "sbn", scaler=True, masked=True)
    settings = from_flat({"data.name": "uoft-cs/cifar10", "mix": "a1-e9", "assignment": "fix", "model.norm": "gn"})
    assert job_of(settings) == Job("cifar10", "iid", "a1-e9", "fix", "gn", scaler=True, masked=True)
    settings = from_flat({"data.name": "wikitext2", "model.scaler": False, "train.mask-fill": "none"})
    assert job_of(settings).variant == ("no Scaler", "no mask")


def test_what_has_no_effect_on_a_single_level_tells_no_jobs_apart():
    plain = from_flat({"data.name": "mnist", "mix": "e"})
    other = from_flat({"data.name": "mnist", "mix": "e1", "assignment": "fix", "model.scaler": False})
    assert job_of(plain) == job_of(other)


@pytest.mark.parametrize("data", ["mnist", "cifar10", "wikitext2"])
@pytest.mark.parametrize("split", ["iid", "non-iid-2"])
def test_presets_are_as_published(data, split):
    assert differences(from_flat({"data.name": data, "data.split": split})) == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 3},
        {"engine.name": "plain", "engine.device": "cpu"},
        {"evaluate.every": 1, "evaluate.levels": False},
        {"run.dir": "elsewhere", "run.callbacks": "", "data.root": "elsewhere"},
        {"sample.min-nodes": 100},
        # What the paper varies.
        {"mix": "c1-d1", "assignment": "fix"},
        {"model.norm": "ln"},
        {"model.scaler": False},
        {"train.mask-fill": "none"},
    ],
)
def test_some_settings_are_as_published(settings):
    assert differences(from_flat({"data.name": "mnist", **settings})) == ()


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"num-rounds": 3}, "num-rounds 3 instead of 200"),
        ({"train.lr": 0.05}, "train.lr 0.05 instead of 0.01"),
        ({"train.milestones": ""}, "train.milestones '' instead of 100"),
        ({"train.clip": 0.0}, "train.clip 0 instead of 1"),
        ({"train.mask-fill": "-inf"}, "train.mask-fill -inf instead of zero"),
        ({"train.precision": "bfloat16"}, "train.precision bfloat16 instead of float32"),
        ({"evaluate.moments-batch-size": 50}, "evaluate.moments-batch-size 50 instead of 0"),
        ({"evaluate.nodes": "capable"}, "evaluate.nodes capable instead of all"),
        ({"model.name": "preresnet18"}, "model.name preresnet18 instead of cnn"),
        ({"sample.fraction": 0.5}, "sample.fraction 0.5 instead of 0.1"),
    ],
)
def test_other_settings_are_not_as_published(changed, difference):
    assert differences(from_flat({"data.name": "mnist", **changed})) == (difference,)


def test_every_difference_is_named():
    found = differences(from_flat({"data.name": "mnist", "fidelity": "fixed", "train.momentum": 0.5}))
    assert "train.momentum 0.5 instead of 0.9" in found
    assert "fidelity fixed instead of paper" in found
    assert "train.mask-fill -inf instead of zero" in found


def test_data_and_splits_of_our_own_are_none_of_the_papers():
    found = differences(from_flat({"data.name": "digits", "data.split": "dirichlet-0.3", "train.lr": 1.0}))
    assert found == (
        "data.name digits is none of the paper's",
        "data.split dirichlet-0.3 is none of the paper's",
        "train.lr 1 instead of 0.05",
    )


def test_cells_are_those_of_the_files(printed):
    cells = {(cell.table, cell.job, cell.metric): cell.printed for cell in read_cells(printed)}
    assert cells["7", Job("mnist", "iid", "e"), "accuracy"] == "98.66"
    assert cells["7", Job("mnist", "noniid", "a-e"), "local"] == "99.89"
    assert cells["9", Job("wikitext2", "iid", "e", norm="none"), "perplexity"] == "7.41"
    assert cells["4", Job("cifar10", "iid", "e", norm="gn"), "accuracy"] == "62.6"
    assert cells["4", Job("mnist", "iid", "a-e", scaler=False), "accuracy"] == "99.0"
    assert cells["5", Job("cifar10", "noniid", "e", masked=False), "global"] == "40.4"
    assert cells["5", Job("mnist", "noniid", "a-e", norm="none", scaler=False), "local"] == "99.4"
    assert len(cells) == 2 * 3 + 1 + 3 * 2 + 2 * 4


def test_the_folder_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "variable"))
    assert paper_folder(tmp_path / "given") == tmp_path / "given"
    assert paper_folder(None) == tmp_path / "variable"


def test_the_folder_is_beside_the_project_or_there_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert paper_folder(None, tmp_path / "project") is None
    beside = tmp_path / "shared" / "paper"
    beside.mkdir(parents=True)
    assert paper_folder(None, tmp_path / "project") == beside


def test_missing_files_are_named(printed):
    (printed / "tables.csv").unlink()
    with pytest.raises(ConfigError, match=r"paper lacks tables\.csv; name the folder that has tables\.csv, ablation"):
        read_cells(printed)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wrong", ["column,other\n1,2\n", "much", "cut"])
def test_files_that_are_not_as_expected_are_named(printed, name, wrong):
    path = printed / name
    with path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[1][1 if wrong == "cut" else len(rows[1]) - 1 :] = ["much"] * (wrong == "much")
    path.write_text(wrong if "," in wrong else "\n".join(map(",".join, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{name} is not as expected: "):
        read_cells(printed)
