"""Records: one a round, handed over to callbacks in order, and logged as one line in any Flower app."""

import logging
import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Momentum, RoundCallback
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.formatting import size
from heterofl_flwr.federation.callbacks import RunState, is_true
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import Console
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import scalars
from heterofl_flwr.runs.recorder import Recorder
from heterofl_flwr.transport.arrays import moment_tensors
from tests.federation.tiny import build, build_normed, crash, equal, make_app, play


class Spy(RoundCallback):
    def __init__(self):
        self.calls = []
        self.progress = []

    def on_start(self, first_round, num_rounds, state):
        self.calls.append(("start", first_round, num_rounds))
        self.first = dict(state)

    def on_round_end(self, progress):
        self.calls.append(("round", progress.record.server_round))
        self.progress.append(progress)
        return False

    def on_end(self, state):
        self.calls.append(("end",))
        self.last = dict(state)


def run(*callbacks, num_rounds=3, app=None, **options):
    found = play(app, "a1-c1", 4, num_rounds, callbacks=callbacks, **{"evaluation": Evaluation(), **options})
    return found.strategy, found.result


def test_true_is_that_of_python_numpy_and_torch():
    assert all(map(is_true, (True, np.True_, torch.tensor(True))))
    assert not any(map(is_true, ({"loss": 1.0}, 1, None, False, torch.tensor(1), torch.ones(2, dtype=torch.bool))))


@pytest.mark.parametrize(("value", "rounds"), [({"loss": 1.0}, 3), (np.True_, 1)])
def test_only_true_ends_a_run_and_the_log_names_the_callback(value, rounds, caplog):
    class Returning(Spy):
        def on_round_end(self, progress):
            super().on_round_end(progress)
            return value

    stops, sees = Returning(), Spy()
    with caplog.at_level("INFO"):
        run(stops, sees)
    assert (
        stops.calls == sees.calls == [("start", 1, 3), *[("round", 1 + number) for number in range(rounds)], ("end",)]
    )
    assert ("Returning ends the run after round 1" in caplog.text) == (rounds == 1)


def test_a_run_that_has_done_all_rounds_only_tells_its_callbacks():
    spy, state = Spy(), dict(build(1.0).named_parameters())
    end = RunState(server_round=3, state={name: own.detach() for name, own in state.items()})
    found = play(nodes=2, num_rounds=3, callbacks=[spy], start={"resume": end})
    assert spy.calls == [("start", 4, 3), ("end",)]
    assert equal(spy.first, end.state)
    assert equal(spy.last, end.state)
    assert equal(spy.last, found.state)


def test_a_record_holds_all_that_is_known_of_a_round():
    spy = Spy()
    app, evaluation = make_app(build=build_normed, odd={3: crash}), Evaluation(every=2, levels=True)
    options = {"build": build_normed, "learning_rate": 0.1, "milestones": [1], "evaluation": evaluation}
    strategy, _ = run(spy, num_rounds=2, app=app, **options)
    one, two = (progress.record for progress in spy.progress)
    assert (one.server_round, two.server_round) == (1, 2)
    assert (one.learning_rate, two.learning_rate) == (0.1, pytest.approx(0.01))
    assert one.rates == {0: 1.0, 1: 1.0, 2: 0.25, 3: 0.25}
    assert list(one.failures) == [3]
    assert f"a 2x{size(one.bytes_by_level['a'] / 2)}, c 2x" in one.line()
    rates, by_level = {0: 1.0, 1: 1.0, 2: 0.5}, {"a": 100, "b": 0}
    sent = RoundRecord(
        server_round=1, seconds=1.0, learning_rate=0.1, rates=rates, unsent=(1, 2), bytes_by_level=by_level
    )
    assert "a 2x100 B, b 1; up" in sent.line()
    assert one.train == {"loss": pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6)}
    assert one.evaluate == one.evaluate_by_level == {}
    assert set(two.evaluate) == {"coverage", "local-accuracy", "worst-accuracy"}
    assert set(two.evaluate_by_level) == {"a", "c"}
    assert one.seconds > 0
    assert (spy.progress[0].moments, set(spy.progress[1].moments)) == ({}, set(moment_tensors(strategy.moments)))
    values = {1.0: 8 * 3 + 3 * 8 + 8 * 4 + 4, 0.25: 2 * 3 + 3 * 2 + 2 * 4 + 4}
    headers = 6 * 128  # numpy's, for each array of the normed model
    assert one.bytes_down == 2 * (4 * values[1.0] + headers) + 2 * (4 * values[0.25] + headers)
    assert one.bytes_up == one.bytes_down - (4 * values[0.25] + headers)


def test_a_callback_that_prints_rounds_does_it_instead(caplog, capsys):
    caplog.set_level(logging.INFO, logger="flwr")
    run(Console(), num_rounds=2)
    assert not [own for own in caplog.records if own.name == "flwr" and "round" in own.getMessage().lower()]
    assert "round 2/2 took=" in capsys.readouterr().out


def test_clients_metrics_say_of_which_share_of_them_they_are():
    record = RoundRecord(server_round=2, seconds=1.0, learning_rate=0.1, rates={})
    record.evaluate = {"coverage": 0.25, "global-accuracy": 0.5, "local-accuracy": 0.75, "worst-accuracy": 0.6}
    record.evaluate_medians = {"local-accuracy": 0.7}
    record.evaluate_by_level = {"c": {"local-accuracy": 0.5, "f1": 0.25}}
    assert list(record.metrics_lines()) == [
        "coverage 0.25, global-accuracy 0.5, local-accuracy 0.75 (of 25% of the clients), "
        "worst-accuracy 0.6 (of 25% of the clients)",
        "level c: local-accuracy 0.5, f1 0.25",
    ]
    record.evaluate["coverage"] = 1.0
    assert "of the clients" not in "".join(record.metrics_lines())


@pytest.mark.parametrize(("value", "rounds"), [(True, 1), ({"loss": 1.0}, 3)])
def test_should_stop_gets_the_round_and_the_result_and_ends_the_run(value, rounds):
    calls, spy = [], Spy()

    def should_stop(server_round, result):
        calls.append((server_round, list(result.train_metrics_clientapp), list(result.evaluate_metrics_clientapp)))
        return value

    _, result = run(spy, start={"should_stop": should_stop})
    done = list(range(1, rounds + 1))
    assert calls == [(number, done[:number], done[:number]) for number in done]
    assert [progress.record.server_round for progress in spy.progress] == done
    assert spy.calls[-1] == ("end",)
    assert equal(spy.last, result.arrays.to_torch_state_dict())


@pytest.mark.parametrize(
    ("callbacks", "found"), [([Spy], "has <class"), ([print], "has <built-in function print>"), (Spy(), "is <")]
)
def test_what_is_no_callback_is_named_before_the_run(callbacks, found):
    """The first round ended with an AttributeError or a TypeError of this package's code."""
    with pytest.raises(ConfigError, match=rf"callbacks {found}.*; expected a list of objects of subclasses of Round"):
        HeteroFL(build, "a1", callbacks=callbacks)


class Adds(HeteroFL):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return arrays, MetricRecord({**metrics, "spread": 3.0})

    def aggregate_evaluate(self, server_round, replies):
        return MetricRecord({**super().aggregate_evaluate(server_round, replies), "local-accuracy": 0.25, "best": 2.0})


def test_metrics_that_a_subclass_adds_are_in_the_record_of_the_round(caplog):
    spy = Spy()
    with caplog.at_level("INFO"):
        run(spy, num_rounds=1, kind=Adds)
    (progress,) = spy.progress
    assert progress.record.train["spread"] == 3.0
    assert (progress.record.evaluate["best"], progress.record.comparable["local-accuracy"]) == (2.0, 0.25)
    assert set(scalars(progress.record)) >= {"train/spread", "evaluate/best"}
    assert "spread 3" in caplog.text
    unchanged = run(spy, num_rounds=1)[0].log
    assert progress.record.train["loss"] == unchanged.train["loss"]
    assert progress.record.evaluate_medians.keys() == unchanged.evaluate_medians.keys() - {"local-accuracy"}


def test_a_metric_that_stays_nan_keeps_its_median():
    record = RoundRecord(server_round=1, seconds=1.0, learning_rate=0.1, rates={})
    record.evaluate = {"local-loss": math.nan, "local-accuracy": 0.5}
    record.evaluate_medians = {"local-loss": math.nan, "local-accuracy": 0.5}
    record.note_changed(record.evaluate, {"local-loss": float("nan"), "local-accuracy": float("nan")})
    assert list(record.evaluate_medians) == ["local-loss"]


def test_the_servers_metrics_do_not_replace_those_of_clients():
    central = {"local-accuracy": 0.125, "coverage": 0.5, "loss": 9.0, "own": 4.0}
    record = run(num_rounds=1, start={"evaluate_fn": lambda *_: MetricRecord(central)})[0].log
    clients = run(num_rounds=1)[0].log
    assert record.train == clients.train
    own = {f"server-{name}": value for name, value in central.items() if name != "own"}
    assert record.evaluate == {**clients.evaluate, **own, "own": 4.0}
    assert record.evaluate_medians == clients.evaluate_medians


class Patience(RoundCallback):
    """Ends the run two rounds after the best one."""

    def __init__(self):
        self.best, self.waited = -1.0, 0

    def on_round_end(self, progress):
        value = 1 / progress.record.server_round
        self.best, self.waited = (value, 0) if value > self.best else (self.best, self.waited + 1)
        return self.waited == 2

    def state(self):
        return {"best": self.best, "waited": self.waited}

    def load(self, state):
        self.best, self.waited = state["best"], state["waited"]


def test_callbacks_go_on_with_their_state(tmp_path):
    def start(**start):
        first, second = Patience(), Patience()
        recorder = Recorder(tmp_path)
        found = play(nodes=2, callbacks=[recorder, first, second], **start)
        assert recorder.folder.load_checkpoint().callbacks == {"Patience": first.state(), "Patience-2": second.state()}
        return found

    start(num_rounds=2)
    checkpoint = RunFolder(tmp_path).load_checkpoint()
    assert checkpoint.callbacks["Patience"] == {"best": 1.0, "waited": 1}
    found = start(num_rounds=9, start={"resume": checkpoint})
    assert list(found.result.train_metrics_clientapp) == [3]


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.float32(0.5), {1}, None])
def test_a_callback_without_a_usable_state_is_named_in_the_first_round(tmp_path, value):
    class Best(RoundCallback):
        def state(self):
            return {"best": value} if value is not None else {}["best"]

    with pytest.raises(ConfigError, match=r"state\(\) of the callback Best gives nothing to save \(\w+Error: .*\), so"):
        play(nodes=2, callbacks=[Best(), Recorder(tmp_path, every=2)], num_rounds=2)
    assert RunFolder(tmp_path).history() == []


def _without_bias(rate):
    model = build(rate)
    model.hidden.bias = None
    return model


def _frozen_since(rate):
    model = build(rate)
    model.hidden.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mix": "a1-c1"}, "mix was a1-b1, fix, global rate 1 and is a1-c1, fix"),
        ({"seed": 4}, "seed was 0 and is 4"),
        ({"stages": [Momentum()]}, "stages was none and is Momentum"),
        ({"build": lambda rate: build(rate / 2)}, r"another model: parameter hidden.weight .* is \(8, 3\)"),
        ({"build": _without_bias}, r"another model: the global state has hidden.bias, which the model of build lacks"),
        ({"build": _frozen_since}, r"resume has other values of hidden.weight .* It is frozen"),
    ],
)
def test_a_run_with_another_setup_is_not_resumed(changed, named):
    resume = play(mix="a1-b1", nodes=2).progress[-1]
    options = {"mix": "a1-b1", "nodes": 2, "num_rounds": 2}
    with pytest.raises(ConfigError, match=named):
        play(**{**options, **changed}, start={"resume": resume})
    older = RunState(server_round=1, state=resume.state)  # without a setup
    play(**options, start={"resume": older})
    play(**options, start={"resume": resume})


def test_a_run_goes_on_from_its_parameters_alone():
    def train(message, context):
        task = Task(message, context, build, seed_torch=True)
        model = task.model()
        with torch.no_grad():
            model.hidden.bias += torch.rand_like(model.hidden.bias)
        return task.reply(model, num_examples=1)

    options = {"nodes": 5, "num_rounds": 3, "fraction_train": 0.4, "assignment": "dynamic"}
    whole = play(make_app(train), **options)
    resume = RunState(server_round=1, state=whole.progress[0].state)
    resumed = play(make_app(train), **options, start={"resume": resume})
    assert equal(resumed.state, whole.state)
    assert resumed.log.rates == whole.log.rates


class AddsBuffers(HeteroFL):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        state = {**build_normed(1.0).state_dict(), **arrays.to_torch_state_dict()}
        return ArrayRecord(state), metrics


def test_a_run_whose_subclass_adds_buffers_to_the_model_is_resumed():
    spy = Spy()
    strategy = AddsBuffers(build_normed, "a1", evaluation=Evaluation(every=0), callbacks=[spy])
    with LocalGrid(make_app(build=build_normed), 2) as grid:
        strategy.start(grid, num_rounds=2)
        strategy.start(grid, num_rounds=2, resume=spy.progress[0])
    assert "norm.running_mean" in spy.progress[0].state
    assert [progress.server_round for progress in spy.progress] == [1, 2, 2]


class TrainsInOddRounds(HeteroFL):
    def configure_train(self, server_round, *args):
        return super().configure_train(server_round, *args) if server_round % 2 else []

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies) if server_round % 2 else (None, None)


def test_a_round_in_which_a_subclass_trains_nobody_has_a_record_of_its_own(caplog):
    spy = Spy()
    with caplog.at_level("INFO"):
        run(spy, num_rounds=3, kind=TrainsInOddRounds)
    assert [progress.server_round for progress in spy.progress] == [1, 2, 3]
    assert [list(progress.record.rates) for progress in spy.progress] == [[0, 1, 2, 3], [], [0, 1, 2, 3]]
    assert spy.progress[1].record.evaluate == spy.progress[0].record.evaluate
    assert "round 2: clients=0/0" in caplog.text


def test_a_strategy_that_resumes_an_earlier_round_begins_with_an_empty_record():
    class Resumed(Spy):
        def on_resume(self, progress):
            self.calls.append((progress.server_round, progress.record.rates))

    spy = Resumed()
    strategy = HeteroFL(build, "a1", evaluation=Evaluation(every=0), callbacks=[spy])
    with LocalGrid(make_app(), 2) as grid:
        strategy.start(grid, num_rounds=3)
        del spy.calls[:]
        strategy.start(grid, num_rounds=3, resume=spy.progress[0])
    assert spy.calls[:2] == [(1, {}), ("start", 2, 3)]


def test_a_run_resumed_with_other_options_is_a_warning(caplog):
    options = {"mix": "a1-b1", "nodes": 2, "num_rounds": 2, "stages": [Momentum(server_momentum=0.5)]}
    resume = play(**{**options, "num_rounds": 1}, learning_rate=abs).progress[-1]
    play(**options, learning_rate=abs, start={"resume": resume})
    assert "other options" not in caplog.text
    changed = {"stages": [Momentum(server_momentum=0.9)], "label_rows": ("classifier.bias",)}
    play(**{**options, **changed}, learning_rate=abs, start={"resume": resume})
    assert (
        "the resumed run had other options: averaging.label_rows was None and is ('classifier.bias',); "
        "Momentum.server_momentum was 0.5 and is 0.9" in caplog.text
    )


class Schedules(HeteroFL):
    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(server_round, arrays, ConfigRecord({**config, "lr": 0.5 / server_round}), grid)


def test_the_record_has_the_learning_rate_of_an_overridden_config():
    assert [record.learning_rate for record in play(kind=Schedules, num_rounds=2).records] == [0.5, 0.25]
