"""What is wrong with a run is told in one line before anything starts, and leaves no folder."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from heterofl_flwr.app import run_app
from heterofl_flwr.app.main import main
from heterofl_flwr.app.preflight import check_task
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import from_flat
from heterofl_flwr.training.batches import steps_per_epoch

SMALL = ["--clients", "2", "--set", "model.hidden=4,8", "--set", "train.epochs=1", "--set", "run.callbacks="]


pytestmark = pytest.mark.usefixtures("machine")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "file/below"], "/file/below: Not a directory; grant access, or choose another folder"),
        (["--out", "x" * 300], "File name too long"),
        (["--resume", "file"], "file is no folder of a run"),
        (["lr=1"], "lr: no setting has this name; did you mean train.lr?"),
        (["--config", "none.toml"], "No such file or directory: 'none.toml'; expected a TOML file of settings"),
        (["run.metrics-address=9090"], "found 9090 (int), expected host:port such as 127.0.0.1:9090, or '' for none"),
        (["run.metrics-address=localhost:99999"], "the metrics address is 'localhost:99999'; expected host:port"),
        (["devices.profile=edges"], "found 'edges' (str), expected edge, 'module:function', or '' for none"),
        (["--data", "digitz"], "no data set 'digitz'; did you mean digits?"),
        (
            ["model.name=transformer"],
            "expected model.name to be cnn, mlp, preresnet18, preresnet18-later, preresnet50 or a function of yours (",
        ),
        (
            ["--set", "run.callbacks=tensorbord"],
            "run.callbacks names 'tensorbord'; expected tensorboard, wandb, mlflow",
        ),
        (["--set", "run.callbacks=nowhere:Own"], "run.callbacks is 'nowhere:Own', which cannot be loaded"),
        (["--set", "evaluate.metric=nowhere:metric"], "evaluate.metric is 'nowhere:metric', which cannot be loaded"),
        (["--set", "server.strategy=fedh2l", "--mix=a", "--set=distill.seed-size=5000"], "a seed set of 5000 examples"),
        (["--set", "data.split=non-iid-50"], "non-iid-50 does not fit 20 clients and 10 classes"),
        (["--clients", "4", "--set=data.split=non-iid-2"], "1 to 10 classes for each client, and 5 or more clients"),
        (["--clients", "5000"], "a split of 1442 examples is too small for 5000 clients: use fewer clients"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_line(tmp_path, capsys, started, arguments, text):
    (tmp_path / "file").touch()
    assert main(["run", *arguments]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert started == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_log_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").touch()
    assert main(["run", "--out", "run"]) == 2
    assert re.search(r"^heterofl: cannot create .*/run/logs: File exists; grant", capsys.readouterr().err, re.MULTILINE)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(started):
    for _ in range(2):
        assert main(["run"]) == 1
    one, two = (request.out for request, _ in started)
    assert one != two


def test_a_folder_that_is_locked_is_refused(tmp_path, capsys):
    with RunFolder(tmp_path / "run").lock():
        assert main(["run", "--out", "run"]) == 2
    assert "another process runs in " in capsys.readouterr().err


def test_what_a_users_own_function_raises_is_left_to_the_run(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text("def data():\n    raise KeyError('own')\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_task(Workload(from_flat({"data.name": "own_data:data"})), 2)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nn.Sequential(nn.Flatten(), nn.Linear(60, 10))", "fails at rate 1 on an input of digits, .*60x10"),
        ("nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double())", "fails at rate 1 on an input of digits, .*dtype"),
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(64, 7))",
            r"returns a tensor \(2, 7\) for 2 .* expected a tensor \(2, 10\)",
        ),
        (
            "nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 10))",
            r"returns a tensor \(2, 8, 10\) for 2 examples of digits",
        ),
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(64, int(64 * rate)), nn.Linear(64, 10))",
            "fails at rate 0.5 on .*64x10",
        ),
        ("nn.Sequential(nn.Flatten(0), nn.Linear(64, 10))", "fails at rate 1 on an input of digits, .*128"),  # of two
        ("nn.LSTM(8, 10)", "fails at rate 1 on an input of digits, .*LSTM"),
    ],
)
def test_a_users_own_model_is_tried_too(tmp_path, monkeypatch, capsys, started, model, said):
    (tmp_path / "own_model.py").write_text(f"from torch import nn\n\ndef build(rate):\n    return {model}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    assert main(["run", "--set", "model.name=own_model:build", "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert re.search(f"the model own_model:build {said}", err)
    assert started == []


def changes_its_inputs(rate: float) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Flatten(), nn.Linear(64, 10))


def test_a_model_that_changes_its_inputs_leaves_the_examples():
    workload = Workload(from_flat({"model.name": f"{__name__}:changes_its_inputs"}))
    inputs = workload.dataset.train.inputs[:2]
    before = inputs.clone()
    check_task(workload, 4)
    assert torch.equal(inputs, before)


def test_the_size_of_a_round_is_said_before_the_first():
    workload = Workload(from_flat({"sample.fraction": 0.5, "train.epochs": 3, "train.batch-size": 16}))
    (steps,) = re.findall(r"^each round trains 2 of 4 clients, about (\d+) steps each$", check_task(workload, 4))
    parts = (workload.part(client, 4).train for client in range(4))
    assert float(steps) == pytest.approx(sum(3 * steps_per_epoch(part, 16) for part in parts) / 4, abs=0.5)


def test_a_step_without_waiting_trains_each_client_once():
    settings = {"asynchronous.size": 50, "asynchronous.concurrency": 60}
    assert check_task(Workload(from_flat(settings)), 4).startswith("each round trains 4 of 4 clients")


def test_the_steps_on_the_seed_batch_of_fedh2l_count():
    settings = {"server.strategy": "fedh2l", "mix": "a", "train.epochs": 1, "train.batch-size": 16}
    numbers = {steps: Workload(from_flat({**settings, "distill.steps": steps})).steps_each(4) for steps in (0, 20)}
    assert numbers[20] == numbers[0] + 20


def test_clients_that_take_no_part_are_not_counted():
    size = check_task(Workload(from_flat({"mix": "a1-x3", "sample.fraction": 0.5})), 8)
    assert size.startswith("each round trains 1 of 2 clients")


def test_spare_clients_that_nothing_delays_are_said_to_count(started, capsys):
    for options, said in ((), 1), (("--set", "devices.profile=edge"), 0), (("--grid", "ray"), 0):
        assert main(["run", "--set", "sample.spare=0.5", *options]) == 1
        assert capsys.readouterr().out.count("sample.spare: here all clients that are asked") == said


def test_without_a_gpu_nothing_computes_on_one(started, capsys):
    for asked, device in ([], "auto"), (["--gpus", "0"], "cpu"):
        assert main(["run", "--out", f"run{len(started)}", *asked]) == 1
        assert started[-1][0].config["engine.device"] == device
    assert main(["run", "--out", "run2", "--gpus", "0", "--set", "engine.device=mps"]) == 2
    assert "device is 'mps', but torch" in capsys.readouterr().err
    assert len(started) == 2
    assert not Path("run2").exists()


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    requests = []

    def run_request(request, *, log):
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_app, "run_request", run_request)
    out = tmp_path / "my run"
    assert main(["run", "--out", str(out), "--seed", "5", "--grid", "local", "--parallel", "1", *SMALL]) == 130
    assert capsys.readouterr().err == "heterofl: interrupted\n"
    RunFolder(out).start(requests[0].config, about={"clients": requests[0].clients})
    assert main(["run", "--resume", str(out), "--grid=local", "--parallel=1"]) == 130
    assert capsys.readouterr().err == (
        f"heterofl: interrupted; resume with: heterofl run --resume '{out}' --grid=local --parallel=1\n"
    )
    assert requests[1].config == {**requests[0].config, "run.resume": True}
    assert main(["run", "--resume", str(out), "--grid=local", "--rounds", "70", "engine.timeout=9"]) == 130
    assert "--grid=local num-rounds=70 engine.timeout=9\n" in capsys.readouterr().err
