import io
import re
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console as RichConsole
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.report import Console, MLflow, Monitor, RunFolder, TensorBoard, WandB, console
from tests.federation.tiny import play

SETTINGS = {"optim": {"lr": 0.1}}


@pytest.mark.parametrize("first_round", [4, 1])
def test_tensorboard_gets_every_round_once_also_of_a_resumed_run(folder, fake, monkeypatch, first_round):
    # Files of one second are ordered by their number in the process, as text: 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    fake.run([TensorBoard(folder)], 1, 9, dies_after=5)
    fake.run([TensorBoard(folder)], first_round, 6)
    events = EventAccumulator(str(folder.events), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("round/seconds")] == [1, 2, 3, 4, 5, 6]
    values = [(event.step, event.value) for event in events.Scalars("evaluate/global-accuracy")]
    expected = [(number, fake.progress(number, 6).record.evaluate["global-accuracy"]) for number in (2, 4, 6)]
    assert values == [(number, pytest.approx(value)) for number, value in expected]
    assert "train/a/loss" in events.Tags()["scalars"]


@pytest.fixture
def calls(monkeypatch):
    """Install modules that note every call, and return the notes."""
    notes: list[tuple[str, tuple, dict]] = []

    def noting(name):
        return lambda *args, **kwargs: notes.append((name, args, kwargs))

    run = SimpleNamespace(id="one", info=SimpleNamespace(run_id="one"), log=noting("log"), finish=noting("finish"))
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **kwargs: notes.append(("init", (), kwargs)) or run
    for name in ("set_tracking_uri", "set_experiment", "log_params", "log_metrics", "end_run"):
        setattr(mlflow, name, noting(name))
    mlflow.start_run = lambda **kwargs: notes.append(("start_run", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return notes


@pytest.mark.parametrize(
    ("tracker", "opens", "goes_on"),
    [(WandB, "init", {"id": "one", "resume": "allow"}), (MLflow, "start_run", {"run_id": "one"})],
)
def test_a_run_that_goes_on_does_so_at_the_service(calls, fake, tmp_path, tracker, opens, goes_on):
    folder = RunFolder(tmp_path)
    folder.start({"mix": "a1"})
    for first_round in (1, 3):
        fake.run([tracker("heterofl", settings=SETTINGS, folder=folder)], first_round, first_round + 1)
    first, second = (kwargs for name, _, kwargs in calls if name == opens)
    assert first.keys().isdisjoint(goes_on)
    assert second == {**first, **goes_on}
    assert [name for name, *_ in calls].count("log_params") == (tracker is MLflow)


@pytest.mark.parametrize(
    ("tracker", "call", "rounds"),
    [
        (WandB, "wandb.init", 0),
        (WandB, "log", 0),
        (WandB, "finish", 3),
        (MLflow, "mlflow.start_run", 0),
        (MLflow, "mlflow.log_params", 0),
        (MLflow, "mlflow.log_metrics", 0),
        (MLflow, "mlflow.end_run", 3),
    ],
)
def test_an_error_of_a_tracker_is_a_warning(calls, fake, monkeypatch, caplog, tracker, call, rounds):
    """One name of a metric ended runs with MLflow."""

    def fail(*args, **kwargs):
        raise RuntimeError("no such name\x1b]0;x\x07\nround 9: ok")

    callback = tracker("heterofl")
    module, _, attribute = call.rpartition(".")
    monkeypatch.setattr(sys.modules[module] if module else sys.modules["wandb"].init(), attribute, fail)
    fake.run([callback], 1, 3)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings
    assert all(tracker.__name__ in warning and "no such name" in warning for warning in warnings)
    assert all(warning.isprintable() for warning in warnings)
    names = [name for name, *_ in calls]
    assert names.count("log" if tracker is WandB else "log_metrics") == rounds
    assert names.count("end_run") == (call in ("mlflow.log_params", "mlflow.log_metrics"))  # else the next job fails


class Dies(RoundCallback):
    def on_round_end(self, progress):
        raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    ("tracker", "end"), [(WandB, ("finish", (), {"exit_code": 1})), (MLflow, ("end_run", (), {"status": "FAILED"}))]
)
def test_a_run_that_fails_ends_at_the_service(calls, tracker, end):
    """The next job of a sweep went on with the run of the one that had failed."""
    with pytest.raises(RuntimeError, match="the disk is full"):
        play(None, "a1", 2, callbacks=[tracker("heterofl"), Dies()])
    assert calls[-1] == end


def test_a_run_that_fails_frees_the_address_of_its_metrics():
    monitor = Monitor("127.0.0.1:0")
    with pytest.raises(RuntimeError, match="the disk is full"):
        play(None, "a1", 2, callbacks=[monitor, Dies()])
    again = Monitor(monitor.address)
    again.on_start(1, 2, {})
    again.close()


def shown(fake, **options) -> str:
    """Return what a run prints on a console with these options."""
    stream = io.StringIO()
    fake.run([Console(RichConsole(file=stream, highlight=False, **options))], 1, 10)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_round_is_one_line_of_names_and_values(fake, monkeypatch):
    lines = shown(fake).splitlines()
    monkeypatch.setenv("TERM", "dumb")
    assert shown(fake, force_terminal=True).splitlines() == lines
    assert len(lines) == 11
    accuracy = 100 * fake.progress(2, 10).record.evaluate["global-accuracy"]
    found = r"round 2/10 took=[\d.]+s left=\d+s failed=0 coverage=40% train-loss=[\d.]+"
    assert re.match(rf"{found} global={accuracy:.1f}% local=[\d.]+% worst=[\d.]+% sent=\S+ lr=0.1$", lines[2])
    assert "\n".join(lines).isascii()


def test_time_left_is_that_of_the_rounds_to_come(fake):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream))
    console.on_start(3, 7, {})
    for number, seconds in ((3, 300.0), (4, 20.0), (5, 40.0)):  # the first one has to start everything
        console.on_round_end(fake.progress(number, 7, seconds=seconds))
    assert re.findall(r"left=(\S+)", stream.getvalue()) == ["1min0s", "1min0s"]


def test_a_long_round_says_how_far_it_is(monkeypatch):
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = Console(RichConsole(file=stream), steps=50)
    shown.on_start(1, 20, {})
    for done in (1, 2, 3):
        now[0] += 20
        shown.on_reply("trained", done, 10, int(done > 1))
    (line,) = stream.getvalue().splitlines()[1:]
    told = "round 1/20: 1 of 10 clients trained, 1 failed, 2.5 steps/s, 2 min 40 s to go; training of 20 rounds takes"
    assert line.startswith(told)


def test_a_client_or_a_server_that_works_long_is_no_silence(monkeypatch, fake):
    stream = io.StringIO()
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(console, "TIMER_SECONDS", 0.05)
    shown = Console(RichConsole(file=stream))
    with shown.by_time():
        shown.on_start(2, 2, {})
        time.sleep(0.3)
        shown.on_reply("trained", 1, 3, 0)
        time.sleep(0.3)
        shown.on_reply("evaluated", 3, 3, 0)
        time.sleep(0.3)
        shown.on_round_end(fake.progress(2, 2))
        time.sleep(0.2)  # other callbacks save the final models
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"round 2/2: no client has trained yet, [\d.]+ s so far", lines[1])
    assert any(re.fullmatch(r"round 2/2: 1 of 3 clients trained, [\d.]+ s so far", line) for line in lines)
    assert re.fullmatch(r"round 2/2: 3 of 3 clients evaluated; the server continues, [\d.]+ s so far", lines[-2])
    assert lines[-1].startswith("round 2/2 took=")
