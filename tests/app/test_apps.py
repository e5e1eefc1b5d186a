"""The apps behind ``flwr run``, on the local grid."""

import json
import re
import sys
from collections import Counter

import pytest
from flwr.app import Context, RecordDict

from heterofl_flwr import HeteroFL, LocalGrid, RoundCallback
from heterofl_flwr.app import server_app
from heterofl_flwr.app.node import load_node_data
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.common.errors import ConfigError, DataError, RoundError
from heterofl_flwr.report import Recorder, RunFolder, console
from heterofl_flwr.runs import recorder
from heterofl_flwr.runs.origin import COMMAND, device_name
from heterofl_flwr.settings.validate import DEFAULTS, from_flat
from heterofl_flwr.stages import clip
from heterofl_flwr.transport.compat import JsonFormatter
from heterofl_flwr.transport.relay import Relay
from tests.app.runs import CLIENT_APP, run_rounds
from tests.federation.tiny import node_context

SMALL = {**DEFAULTS, "model.hidden": "8,16", "train.epochs": 1, "train.batch-size": 50}
SMALL |= {"evaluate.levels": False, "run.callbacks": ""}
CLIENTS = 5


def run(clients=CLIENTS, node_config=None, **settings):
    config = {**SMALL, **{key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}}
    return run_rounds(config, clients, **({} if node_config is None else {"node_config": node_config}))


def rounds_of(progress):
    return [one.record.server_round for one in progress]


def die(*_arguments, **_options):
    raise KeyboardInterrupt


def interrupted(monkeypatch, owner, name, end, **settings):
    """Run with a function replaced by one that ends it."""
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, end)
        with pytest.raises(KeyboardInterrupt):
            run(**settings)


def test_digits_are_learnt_by_clients_of_five_sizes():
    config = {"train__epochs": 3, "train__batch_size": 20, "train__lr": 0.2, "model__hidden": "16,32", "num_rounds": 3}
    last = run(clients=10, evaluate__levels="last", evaluate__every=3, **config)[-1].record
    assert min(last.evaluate["global-accuracy"], last.evaluate["local-accuracy"]) > 0.9
    assert set(last.evaluate_by_level) == set("abcde")
    assert last.evaluate_by_level["a"]["global-accuracy"] > last.evaluate_by_level["e"]["global-accuracy"]


@pytest.mark.usefixtures("page")
def test_a_run_folder_tells_all_about_its_run(tmp_path):
    folder = tmp_path / "run"
    run(num_rounds=1, run__dir=str(folder), run__callbacks="tensorboard")
    assert json.loads((folder / "settings.json").read_text())["settings"]["model.hidden"] == "8,16"
    assert {path.stem for path in (folder / "models").glob("*.json")} == set("abcde")
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert list((folder / "events").iterdir())
    assert RunFolder(folder).about()["clients"] == CLIENTS
    assert RunFolder(folder).about()["device"] == device_name(load_workload(SMALL).device) != "auto"


def test_a_run_that_is_killed_tells_how_many_clients_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(HeteroFL, "start", die)
    config = {**SMALL, "run.dir": str(tmp_path)}
    with LocalGrid(CLIENT_APP, CLIENTS, run_config=config) as grid, pytest.raises(KeyboardInterrupt):
        server_app.run(Relay(grid), load_workload(config))  # as `heterofl run` does
    assert RunFolder(tmp_path).about()["clients"] == CLIENTS


class Foreign:
    """A grid of which this package knows nothing, as Flower's own."""

    def __init__(self, grid):
        self._grid = grid

    def __getattr__(self, name):
        return getattr(self._grid, name)


def flwr_run(**settings):
    config = {**SMALL, "num-rounds": 1, **settings}
    with LocalGrid(CLIENT_APP, CLIENTS, run_config=config) as grid:
        server_app.run(Foreign(grid), load_workload(config))


@pytest.mark.usefixtures("page")
def test_flwr_run_makes_a_folder_and_prints_the_tables_or_warns_that_it_writes_nothing(
    tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    flwr_run()
    [folder] = tmp_path.glob("runs/digits-*")
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    (tmp_path / "full").mkdir()
    monkeypatch.chdir(tmp_path / "full")
    (tmp_path / "full" / "runs").write_text("a file where the folder should be")
    flwr_run()
    assert "no folder is written, so results are in this log alone" in caplog.text


@pytest.mark.usefixtures("page")
def test_a_json_log_has_progress_and_the_numbers_of_rounds_and_nothing_is_printed_beside_it(
    tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        flwr_run(**{"run.dir": str(tmp_path), "run.log": "json", "privacy.clip": 1.0, "privacy.noise": 1.0})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    (numbers,) = (line["round"] for line in lines if "round" in line)
    assert numbers == json.loads((tmp_path / "history.jsonl").read_text())
    messages = [line["message"] for line in lines]
    assert any(message.startswith("epsilon is at most ") for message in messages)
    assert any(message.startswith("round 1/1: 3 of 5 clients trained") for message in messages)
    assert not any("took=" in message for message in messages)
    assert capsys.readouterr().out == ""


def test_a_run_that_died_after_its_final_round_keeps_its_number_of_clients(tmp_path):
    settings = {"clients": 2, "num_rounds": 1, "run__dir": str(tmp_path)}
    run(**settings)
    RunFolder(tmp_path).note(finished=None)
    run(**settings, run__resume=True)
    about = RunFolder(tmp_path).about()
    assert (about["clients"], about["finished"] is None) == (2, False)


def test_a_resume_that_cannot_go_on_changes_nothing(tmp_path, caplog):
    settings = {"clients": 2, "run__dir": str(tmp_path)}
    run(**settings, num_rounds=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", "heterofl_flwr"):
        assert run(**settings, num_rounds=2, run__resume=True) == []
    assert "is finished: 2 rounds; to go on, set num-rounds above 2" in caplog.text
    for asked, cause in (
        ({"num_rounds": 1}, "has done 2 rounds, and num-rounds is 1: ask for 2 or more"),
        ({"num_rounds": 3, "train__lr": 0.5}, "had other settings: train.lr was 0.05 and is 0.5"),
        ({"num_rounds": 3, "engine__device": "cuda:99"}, "device is 'cuda:99'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(cause)):
            run(**{**settings, **asked}, run__resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert rounds_of(run(**settings, num_rounds=3, run__resume=True)) == [3]
    (tmp_path / "checkpoint" / "round-000003.safetensors").write_bytes(b"")
    assert rounds_of(run(**settings, num_rounds=3, run__resume=True)) == [3]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    settings = {"clients": 2, "num_rounds": 2, "run__checkpoint_every": 2, "run__dir": str(tmp_path / "run")}

    def append_and_die(self, progress):
        self.folder.append(progress.record)
        raise KeyboardInterrupt

    interrupted(monkeypatch, Recorder, "on_round_end", append_and_die, **settings)
    assert rounds_of(run(**settings, run__resume=True)) == [1, 2]
    assert len(RunFolder(tmp_path / "run").history()) == 2


@pytest.mark.parametrize("rule", [{"server__slice_rule": "rolling"}, {"server__by_level": "*norm*"}])
def test_a_run_that_died_while_it_wrote_its_models_writes_them_when_it_is_resumed(tmp_path, monkeypatch, rule):
    """They had the first entries and the global model's values, whatever the rule."""
    settings = {"clients": 2, "mix": "a1-c1", "num_rounds": 2, "evaluate__levels": True, **rule}
    run(**settings, run__dir=str(tmp_path / "whole"))

    interrupted(monkeypatch, recorder, "save_models", die, **settings, run__dir=str(tmp_path / "broken"))
    assert run(**settings, run__dir=str(tmp_path / "broken"), run__resume=True) == []
    whole, broken = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "models").iterdir()}
        for name in ("whole", "broken")
    )
    assert broken == whole


def test_releases_of_rounds_that_are_repeated_count_as_well(tmp_path, monkeypatch, capsys):
    """Clients get the model of a repeated round with new noise: four were sent, and two accounted for."""
    settings = {"clients": 2, "num_rounds": 2, "run__dir": str(tmp_path), "train__labels": "none"}
    settings |= {"privacy__clip": 1.0, "privacy__noise": 1.0}
    shown = []
    released, evaluate = clip.released, HeteroFL.aggregate_evaluate
    monkeypatch.setattr(clip, "released", lambda *given: shown.append(1) or released(*given))
    for last in (1, 2):

        def die_in_last(strategy, number, replies, last=last):
            if number == last:
                raise KeyboardInterrupt
            return evaluate(strategy, number, replies)

        interrupted(monkeypatch, HeteroFL, "aggregate_evaluate", die_in_last, **settings)
    capsys.readouterr()
    (last,) = run(**settings, run__resume=True)
    assert len(shown) == 1 + 2 + 1
    assert last.record.stages["training-releases"] == last.record.stages["moments-releases"] == 4
    counted = Counter()
    for entry in RunFolder(tmp_path).releases():
        assert (entry.noise, entry.clip) == (1.0, 1.0 if entry.kind == "training-releases" else 10.0)
        counted[entry.kind] += entry.number
    assert counted == {"training-releases": 4, "moments-releases": 4}
    assert told_epsilon(capsys) == f"{last.record.stages['epsilon']:.4g}"


def told_epsilon(capsys):
    (found,) = re.findall(r"epsilon is at most (\S+) at delta 1e-05 after round 2\n", capsys.readouterr().out)
    return found


@pytest.mark.parametrize("options", [{"evaluate__levels": "last"}, {"evaluate__every": 2}, {"model__norm": "gn"}])
def test_the_epsilon_of_the_last_round_is_told_before_the_first(capsys, options):
    settings = {"clients": 3, "mix": "a1-c1-e1", "num_rounds": 2, "train__labels": "none", **options}
    last = run(**settings, privacy__clip=1.0, privacy__noise=1.0)[-1].record
    assert told_epsilon(capsys) == f"{last.stages['epsilon']:.4g}"


def test_without_noise_no_epsilon_is_told(capsys):
    run(clients=2, num_rounds=1)
    assert "epsilon" not in capsys.readouterr().out


@pytest.mark.usefixtures("page")
def test_under_flower_the_report_has_the_users_command(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMAND, "")
    monkeypatch.delenv(COMMAND)
    monkeypatch.setattr(sys, "argv", ["/bin/flwr-simulation", "--token", "not-for-the-report"])
    config = {**SMALL, "run.dir": str(tmp_path), "num-rounds": 1}
    with LocalGrid(CLIENT_APP, 2, run_config=config) as grid:
        server_app.app(grid, Context(1, 0, {}, RecordDict(), config))
    assert RunFolder(tmp_path).about()["command"] == "flwr run ."
    assert "not-for-the-report" not in (tmp_path / "settings.json").read_text() + (tmp_path / "report.html").read_text()


def test_a_run_of_a_version_that_had_fewer_settings_goes_on(tmp_path):
    run(clients=2, num_rounds=1, run__dir=str(tmp_path))
    path = tmp_path / "settings.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["devices.profile"], stored["settings"]["server.slice-rule"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r'had other settings: server\.slice-rule was "prefix" and is "rolling"'):
        run(clients=2, num_rounds=2, run__dir=str(tmp_path), run__resume=True, server__slice_rule="rolling")
    assert rounds_of(run(clients=2, num_rounds=2, run__dir=str(tmp_path), run__resume=True)) == [2]


def test_the_server_can_leave_the_test_set_alone():
    with_server = run(clients=5, num_rounds=1)[-1].record.evaluate
    without = run(clients=5, num_rounds=1, evaluate__central=False)[-1].record.evaluate
    # Five clients share the 355 test images evenly, so both see the same ones.
    assert without["global-accuracy"] == pytest.approx(with_server["global-accuracy"])


def test_a_global_model_whose_batch_norm_nobody_measured_is_not_evaluated(caplog):
    small = {"mix": "a1-c1", "server__largest_level": "c", "num_rounds": 1}
    assert run(**small)[-1].record.evaluate == {"coverage": 0.0}
    assert (
        "round 1: the server does not evaluate the global model, because no client that can hold rate 1" in caplog.text
    )
    assert "global-accuracy" in run(**small, model__norm="gn")[-1].record.evaluate


def mean_of_logits(model, inputs, targets):
    assert len(inputs) == len(targets)
    return {"mean-logit": model(inputs).mean()}


def build(rate):
    from heterofl_flwr.nn import CNN

    return CNN(channels=1, classes=10, hidden=(8,), rate=rate)


class Noting(RoundCallback):
    def __init__(self, folder):
        self.file = folder.path / "notes"

    def on_end(self, state):
        self.file.touch()


def test_metrics_models_and_callbacks_can_be_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "user_module", sys.modules[__name__])
    record = run(
        num_rounds=1,
        evaluate__metric="user_module:mean_of_logits",
        model__name="user_module:build",
        model__hidden="auto",
        run__callbacks="tests.federation.tiny:Keep,user_module:Noting",
        run__dir=str(tmp_path),
    )[-1].record
    assert "mean-logit" in record.evaluate
    assert (tmp_path / "notes").exists()


def test_a_node_may_have_data_of_its_own(tmp_path):
    rows = ["x,y,label", *(f"{number},{-number},{number % 2}" for number in range(20))]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    context = node_context({**SMALL, "data.name": str(tmp_path)}, data_path=str(tmp_path))
    data = load_node_data(context, load_workload(context.run_config))
    assert (len(data.train), len(data.test), data.classes) == (20, 20, (0, 1))
    with pytest.raises(DataError, match=r"of shape \(2,\); expected torch.float32 of shape \(1, 8, 8\), as in"):
        load_node_data(node_context(SMALL, data_path=str(tmp_path)), load_workload(SMALL))


def test_a_node_that_does_not_know_its_data_is_told_how():
    with pytest.raises(ConfigError, match=r"has level; .* --node-config 'partition-id=0 num-partitions=10'"):
        load_node_data(node_context(SMALL, level="b"), load_workload(SMALL))
    with pytest.raises(RoundError, match="num-partitions='many'; expected a whole number"):
        run(num_rounds=1, node_config=lambda partition: {"num-partitions": "many"})
    with pytest.raises(ConfigError, match="partition-id is 9; expected 0 to 7"):
        Workload(from_flat({})).part(9, 8)
