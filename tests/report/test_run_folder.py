import json
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import Checkpoint, RunFolder
from heterofl_flwr.runs import folder as run_folder
from heterofl_flwr.runs.folder import flatten
from heterofl_flwr.runs.origin import commit, machine

SETTINGS = {"model": "cnn", "optim": {"lr": 0.1, "milestones": (60, 80)}, "rounds": 10}


@pytest.fixture
def used(folder, record):
    folder.start(SETTINGS)
    folder.append(record(1))
    folder.save_checkpoint(Checkpoint(server_round=1, state={"w": torch.ones(1)}))
    return folder


def test_settings_are_kept(folder):
    folder.start(SETTINGS, about={"title": "A run"})
    again = RunFolder(folder.path)
    assert again.started
    assert again.settings() == {"model": "cnn", "optim": {"lr": 0.1, "milestones": [60, 80]}, "rounds": 10}
    about = again.about()
    assert about["title"] == "A run"
    assert about["versions"].keys() == {"heterofl-flwr", "python", "flwr", "torch"}
    assert len(about["starts"]) == 1
    assert about["commits"] == [commit()]
    assert about["machines"] == [machine()]


def test_each_start_has_its_commit_and_machine(used, monkeypatch):
    monkeypatch.setattr(run_folder, "commit", lambda: "later")
    monkeypatch.setattr(run_folder, "machine", lambda: "another")
    used.start(SETTINGS, resume=True)
    assert used.about()["commits"] == [commit(), "later"]
    assert used.about()["machines"] == [machine(), "another"]


def test_a_package_that_is_not_installed_has_no_version(folder, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    folder.start(SETTINGS)
    assert folder.about()["versions"]["flwr"] == "not installed"


def test_nothing_is_written_before_a_start(folder):
    assert not folder.started
    assert not folder.path.exists()


def test_a_run_with_the_same_settings_is_not_overwritten(used):
    with pytest.raises(ConfigError, match="holds a run with these settings already: resume it, or choose another"):
        RunFolder(used.path).start(SETTINGS)


def test_another_run_is_not_overwritten_and_each_difference_is_named(used):
    other = {"model": "preresnet18", "optim": {"lr": 0.1, "milestones": [60, 90]}, "rounds": 10, "seed": 1}
    with pytest.raises(ConfigError, match="holds another run") as caught:
        used.start(other)
    text = str(caught.value)
    assert 'model was "cnn" and is "preresnet18"' in text
    assert "optim.milestones was [60, 80] and is [60, 90]" in text
    assert "seed was not set and is 1" in text
    assert "lr" not in text


def test_settings_alone_of_another_run_are_not_overwritten(folder):
    folder.start(SETTINGS)
    with pytest.raises(ConfigError, match="holds another run: rounds was 10 and is 11"):
        folder.start({**SETTINGS, "rounds": 11})


def test_a_run_that_died_before_its_first_round_can_start_over(folder):
    folder.start(SETTINGS)
    folder.start(SETTINGS)
    assert len(folder.about()["starts"]) == 1


def test_a_run_is_resumed(used, costs):
    used.note(num_rounds=10)
    used.write_costs(costs.model())
    used.start(SETTINGS, resume=True)
    assert len(used.about()["starts"]) == 2
    assert used.costs() == costs.model()
    assert used.about()["num_rounds"] == 10
    assert used.load_checkpoint().server_round == 1


def test_a_resumed_run_may_change_only_what_it_may(used):
    with pytest.raises(ConfigError, match=r"had other settings: rounds was 10 and is 20\. Resume it with"):
        used.start({**SETTINGS, "rounds": 20}, resume=True)
    used.start({**SETTINGS, "rounds": 20}, resume=True, may_differ=["rounds"])
    assert used.settings()["rounds"] == 20


def test_there_must_be_something_to_resume(folder):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        folder.start(SETTINGS, resume=True)
    assert not folder.started


def test_a_run_without_a_checkpoint_is_resumed_without_its_rounds(folder, record):
    folder.start(SETTINGS)
    folder.append(record(1))
    with pytest.raises(ConfigError, match="already: resume it, or choose another"):
        folder.start(SETTINGS)
    folder.start(SETTINGS, resume=True)
    assert folder.history() == []
    assert len(folder.about()["starts"]) == 2


def test_a_folder_that_is_none_of_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder of a run"):
        RunFolder(tmp_path).settings()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"settings": 3, "about": {}}', "[" * 100_000])
def test_settings_that_cannot_be_read_are_an_error(folder, text):
    folder.start(SETTINGS)
    (folder.path / "settings.json").write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.json cannot be read"):
        folder.settings()


def test_costs_are_kept(folder, costs):
    folder.start(SETTINGS)
    assert folder.costs() is None
    folder.write_costs(costs.model())
    assert folder.costs() == costs.model()
    assert folder.settings()["model"] == "cnn"


def test_rewinding_drops_later_rounds_and_checkpoints(used, record):
    used.append(record(2))
    used.save_checkpoint(Checkpoint(server_round=2, state={"w": torch.ones(1)}))
    used.rewind(1)
    assert [one.server_round for one in used.history()] == [1]
    assert used.load_checkpoint().server_round == 1


@pytest.mark.parametrize("linked", ["clients", "clients/00001"])
def test_rewinding_removes_nothing_that_a_link_leads_to(used, linked, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    other = elsewhere / "00001" / "000002.safetensors" if linked == "clients" else elsewhere / "000002.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another run's")
    (used.path / linked).parent.mkdir(exist_ok=True)
    (used.path / linked).symlink_to(elsewhere)
    used.rewind(1)
    assert other.read_bytes() == b"another run's"


def test_a_model_is_saved_with_its_shapes(folder):
    folder.save_model("b", {"w": torch.ones(2, 3)}, {"fixed.bn.count": torch.tensor(3)}, {"rate": 0.5})
    models = folder.path / "models"
    assert torch.equal(load_file(models / "b.safetensors")["w"], torch.ones(2, 3))
    assert load_file(models / "b.moments.safetensors")["fixed.bn.count"].item() == 3
    assert json.loads((models / "b.json").read_text()) == {"level": "b", "rate": 0.5, "shapes": {"w": [2, 3]}}


def test_nested_settings_are_named_by_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "a.d": {}, "e": [2]}


def test_releases_are_not_forgotten_with_the_rounds_that_they_were_in(used, record):
    assert used.releases() == {"training-releases": 0, "moments-releases": 0}
    used.append(replace(record(2), privacy={"epsilon": 3.0, "training-releases": 2.0, "moments-releases": 4.0}))
    assert used.releases() == {"training-releases": 2, "moments-releases": 4}
    used.write_releases({"training-releases": 3, "moments-releases": 4})
    used.rewind(1)
    assert RunFolder(used.path).releases() == {"training-releases": 3, "moments-releases": 4}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"training-releases": 1}', '{"training-releases": null}'])
def test_releases_that_cannot_be_read_are_not_taken_for_none(used, text):
    (used.path / "privacy.json").write_text(text)
    with pytest.raises(ConfigError, match=r"privacy\.json cannot be read, so what the run gave away is not known"):
        used.releases()
