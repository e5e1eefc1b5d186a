import math
import os
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.files import to_json
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.models import model_facts
from heterofl_flwr.runs.origin import commit, machine
from heterofl_flwr.runs.recorder import Recorder
from heterofl_flwr.stages.privacy_accountant import Releases

SETTINGS = {"model": "cnn", "optim": {"lr": 0.1, "milestones": (60, 80)}, "rounds": 10}


@pytest.fixture
def used(folder, record):
    folder.start(SETTINGS)
    folder.append(record(1))
    folder.save_checkpoint(RunState(server_round=1, state={"w": torch.ones(1)}))
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


def test_settings_name_all_versions_that_trained(used, monkeypatch):
    version = used.about()["versions"]["flwr"]
    for installed in ("9.8", "9.8", "9.9"):
        monkeypatch.setattr("heterofl_flwr.runs.origin.metadata.version", lambda name, now=installed: now)
        used.start(SETTINGS, resume=True)
    assert used.about()["versions"]["flwr"] == f"{version}, 9.8, 9.9"


def test_a_relative_path_is_named_in_full(tmp_path, monkeypatch):
    """Under ``flwr run`` the process is in the folder in which its SuperLink was started, not in that of the app."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/app")
    folder.start(SETTINGS)
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'runs' / 'app'} holds another run")):
        folder.start({})
    folder.unlock()


def test_another_run_is_not_overwritten(used):
    other = {"model": "preresnet18", "optim": {"lr": 0.1, "milestones": [60, 90]}, "rounds": 10, "seed": 1}
    with pytest.raises(ConfigError, match="holds another run") as caught:
        used.start(other)
    text = str(caught.value)
    assert 'model was "cnn" and is "preresnet18"' in text
    assert "optim.milestones was [60, 80] and is [60, 90]" in text
    assert "seed was not set and is 1" in text
    assert "lr" not in text


def test_a_run_is_resumed(used, costs):
    used.note(num_rounds=10)
    assert used.costs() is None
    used.write_costs(costs.model())
    used.start(SETTINGS, resume=True)
    assert len(used.about()["starts"]) == 2
    assert used.costs() == costs.model()
    assert used.about()["num_rounds"] == 10
    assert used.load_checkpoint().server_round == 1


def test_there_must_be_a_run_to_resume_and_to_read(folder):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        folder.start(SETTINGS, resume=True)
    assert not folder.path.exists()
    with pytest.raises(ConfigError, match=r"is no folder of a run: it has no settings\.json$"):
        folder.settings()
    folder.start(SETTINGS)
    with pytest.raises(ConfigError, match=rf"the folders in it are runs: name them, {folder.path.parent}/\*/"):
        RunFolder(folder.path.parent).settings()


def test_a_folder_is_locked_once_and_unlocked(folder):
    with folder.lock():
        with pytest.raises(ConfigError, match=f"another process runs in {folder.path}"), RunFolder(folder.path).lock():
            pass
        with RunFolder(folder.path.with_name("other")).lock():
            pass
    with folder.lock():
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(HeteroFLError, match=f"cannot create {folder.path}: Not a dir.*choose another"), folder.lock():
        pass


@pytest.mark.parametrize("linked", ["models", "clients", "clients/00001", "report.html", "logs/flower.log"])
@pytest.mark.parametrize("started", [True, False])
def test_a_folder_with_links_to_elsewhere_is_refused(folder, linked, started, tmp_path):
    if started:
        folder.start(SETTINGS)
    (folder.path / linked).parent.mkdir(parents=True, exist_ok=True)
    (folder.path / linked).symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=f"has links .{linked}."):
        folder.start(SETTINGS, resume=started)
    if started:
        for use in (folder.costs, partial(folder.rewind, 0)):
            with pytest.raises(ConfigError, match="has links"):
                use()


def test_releases_are_not_forgotten_with_their_rounds(used):
    assert used.releases() == []
    written = [Releases("training-releases", 1.0, 1.5, 3, "x"), Releases("moments-releases", 1.0, 10.0, 4, "x")]
    used.write_releases(written)
    used.rewind(1)
    assert RunFolder(used.path).releases() == written


ENTRY = {"kind": "training-releases", "noise": 1.0, "clip": 1.0, "number": 1, "source": ""}


@pytest.mark.parametrize(
    "text", ["", *(to_json([{**ENTRY, **forged}]) for forged in ({"noise": 0.0}, {"noise": "inf"}, {"number": -1}))]
)
def test_releases_that_cannot_be_read_are_not_taken_for_none(used, text):
    (used.path / "privacy.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"(?s)privacy\.json cannot be read: .* no other file says how much privacy the run spent"
    ):
        used.releases()


def test_records_are_read_back_as_they_were_written(folder, records):
    odd = replace(records[0], failures={3: "zeile\u2028ende\n\x85 \N{SNOWMAN}"}, train={"perplexity": math.inf})
    for one in (*records, odd):
        folder.append(one)
    assert folder.history() == [*records, odd]
    assert (folder.path / "history.jsonl").read_text().count("\n") == len(records) + 1
    folder.append(replace(odd, train={"loss": math.nan}))
    assert math.isnan(folder.history()[-1].train["loss"])


def test_a_broken_line_before_the_last_is_an_error(folder, record):
    folder.path.mkdir()
    (folder.path / "history.jsonl").write_text('{"server_round": 1}\n')
    folder.append(record(1))
    with pytest.raises(ConfigError, match=r"history.jsonl, line 1 is no record"):
        folder.history()


def test_rewinding_drops_what_is_of_later_rounds(used, records):
    used.append(records[1])
    used.save_checkpoint(RunState(server_round=2, state={"w": torch.ones(1)}))
    states = used.clients / "00000000000000ff" / "00001"
    states.mkdir(parents=True)
    for name in ("000001.safetensors", "000002.safetensors", "copy-000002.safetensors"):
        (states / name).touch()
    used.rewind(1)
    assert [one.server_round for one in used.history()] == [1]
    assert used.load_checkpoint().server_round == 1
    assert sorted(path.name for path in states.iterdir()) == ["000001.safetensors", "copy-000002.safetensors"]
    with pytest.raises(ConfigError, match="ends with round 1, but the run is to go on after round 3"):
        used.rewind(3)
    used.append(records[1])
    assert [one.server_round for one in used.history()] == [1, 2]


def test_a_second_process_cannot_resume_a_run_that_goes_on(folder):

    def resumed() -> str:
        """Return what a fork of this process, which starts at once, is told."""
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                RunFolder(folder.path).start({"seed": 1}, resume=True)
                os.write(writing, b"started")
            except BaseException as error:  # the fork must not go on as pytest
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with open(reading) as answer:
            return answer.read()

    recorder = Recorder(folder)
    for begin, end in (
        (lambda: folder.start({"seed": 1}), folder.unlock),
        (lambda: recorder.on_start(1, 2, {}), recorder.on_error),
    ):
        begin()
        assert "another process runs in" in resumed()
        end()
        assert resumed() == "started"


@pytest.mark.parametrize("name", [".lock", "history.jsonl", "logs/flower.log"])
def test_hard_links_and_linked_locks_are_refused_before_they_are_opened(folder, name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = folder.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(victim)
    with pytest.raises(ConfigError, match="has links"), folder.lock():
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["..", "\x1b[2Ja", "a\x1b[2J"])
def test_models_are_named_by_levels(folder, name):
    folder.models.mkdir(parents=True)
    (folder.models / f"{name}.json").write_text('{"rate": 1}')
    with pytest.raises(ConfigError, match="has a model named"):
        model_facts(folder)
