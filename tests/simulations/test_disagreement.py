"""The levels' disagreement: its values by hand, the round that it trains, and the runs that it refuses."""

import csv
import json
import shutil

import pytest
import torch

from heterofl_flwr.app.main import main as heterofl
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.core import Plan
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.validate import to_flat
from heterofl_flwr.stages.server_stage import RoundContext, Update
from simulations import disagreement

STATE = {"one.weight": torch.full((4,), 10.0), "two.bias": torch.full((2,), -1.0)}
DIGITS = (
    "data.name=digits model.name=cnn model.hidden=8,16 train.epochs=1 train.batch-size=50 evaluate.every=0 "
    "sample.fraction=1.0 num-rounds=1"
)


def update(one, two):
    changes = {"one.weight": torch.tensor(one), "two.bias": torch.tensor(two)}
    tensors = {name: STATE[name][: len(change)] + change for name, change in changes.items()}
    return Update(plan=Plan.between(STATE, tensors), tensors=tensors, rate=0.5)


def test_levels_are_compared_on_the_entries_that_both_hold():
    updates = {
        "a": [update([1.0, 0.0, 9.0, 9.0], [2.0, 0.0]), update([0.0, 1.0, 9.0, 9.0], [2.0, 0.0])],
        "b": [update([3.0, 4.0], [-1.0, 0.0]), update([3.0, 4.0], [-1.0, 0.0])],
    }
    values = disagreement.compare(RoundContext(server_round=1, state=STATE), updates)
    # The cosines of (1, 0) and of (0, 1) with (3, 4) are 0.6 and 0.8; the halves of a are at right angles.
    expected = {"cosine": 0.7, "halves": 0.5, "norm_ratio": 0.5**0.5 / 5}
    assert values["one", "a", "b"] == pytest.approx(expected, abs=1e-6)
    assert values["two", "a", "b"] == pytest.approx({"cosine": -1.0, "halves": 1.0, "norm_ratio": 2.0}, abs=1e-6)
    assert set(values) == {(layer, "a", "b") for layer in ("one", "two", "all")}


def test_the_table_has_means_over_files(tmp_path):
    files = [tmp_path / "1.csv", tmp_path / "2.csv"]
    for path, cosine, gain in zip(files, (0.2, 0.4), (-1.0, 2.0), strict=True):
        path.write_text(f"{','.join(disagreement.COLUMNS)}\none,mix,b,,,,{gain}\none,a,b,{cosine},0.5,1,3\n")
    assert disagreement.table(files).splitlines()[::2] == ["| layer | a, b | mix, b |", "| one | 0.30 (0.50) | +0.5 |"]


def trained(folder, *settings):
    command = ["run", "--out", str(folder), "--clients", "6", *DIGITS.split(), *settings]
    assert heterofl(command) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run of one round, whose clients keep the state of SCAFFOLD."""
    return trained(tmp_path_factory.mktemp("runs") / "run", "mix=a1-c1", "server.stages=scaffold")


def test_the_round_is_that_of_the_resumed_run_with_the_states_of_its_clients(run, tmp_path):
    folder = RunFolder(run)
    workload = load_workload({**to_flat(from_stored(folder.settings())), "run.dir": ""})
    context, updates = disagreement.train(folder, workload)
    assert {level: len(replies) for level, replies in updates.items()} == {"a": 3, "c": 3}
    shutil.copytree(run, tmp_path / "copy")
    assert heterofl(["run", "--resume", str(tmp_path / "copy"), "num-rounds=2"]) == 0
    resumed = RunFolder(tmp_path / "copy").load_checkpoint()
    model = disagreement.mean(context, [update for replies in updates.values() for update in replies])
    assert all(torch.equal(model[name], tensor) for name, tensor in resumed.state.items())


def test_each_layer_of_two_levels_has_its_values_and_the_run_is_only_read(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert disagreement.main([str(run), "--out", str(tmp_path / "out.csv")]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with (tmp_path / "out.csv").open() as file:
        rows = {(row["layer"], row["larger"], row["smaller"]): row for row in csv.DictReader(file)}
    layers = {"features.conv1", "features.norm1", "features.conv2", "features.norm2", "linear", "all"}
    pairs = [("mix", "a"), ("a", "c"), ("mix", "c")]
    assert rows.keys() == {(layer, *pair) for layer in layers for pair in pairs}
    assert all(abs(float(row["gain"])) <= 100 for row in rows.values())
    assert all(bool(row["cosine"]) == (row["larger"] == "a") for row in rows.values())
    assert disagreement.table([tmp_path / "out.csv"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mix=c1"], "mix is c1 (expected two levels or more)"),
        (["mix=a1-c1", "server.slice-rule=rolling"], "server.slice-rule is 'rolling' (expected 'prefix')"),
        (["mix=a1-c1", "server.stages=secure-sum"], "server.stages has secure-sum"),
    ],
)
def test_a_run_whose_levels_cannot_be_compared_is_refused(run, tmp_path, capsys, settings, message):
    folder = shutil.copytree(run, tmp_path / "run")
    content = json.loads((folder / "settings.json").read_text())
    content["settings"] |= dict(setting.split("=") for setting in settings)
    (folder / "settings.json").write_text(json.dumps(content))
    assert disagreement.main([str(folder), "--out", str(tmp_path / "out.csv")]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_level_of_one_client_is_refused(tmp_path, capsys):
    folder = trained(tmp_path / "run", "mix=a1-c5")
    assert disagreement.main([str(folder), "--out", str(tmp_path / "out.csv")]) != 0
    assert "has one client at a; expected two or more" in capsys.readouterr().err
