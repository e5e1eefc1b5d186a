"""What code for Flower's classic strategies does beside the hooks: configs, functions of metrics, attributes."""

import numpy as np
import pytest
from flwr.common import EvaluateIns, EvaluateRes, ndarrays_to_parameters
from flwr.server.client_manager import SimpleClientManager

from heterofl_flwr import Evaluation, Sampling
from heterofl_flwr.classic import HeteroFL, Task, parameters_of
from heterofl_flwr.common.errors import ConfigError, ReplyError, RoundError
from tests.classic.fakes import OK, Fake, evaluate_all, fit_all, manager_of
from tests.classic.test_task import config
from tests.federation.tiny import build, build_normed, node_context


class Session:
    """A strategy of clients at one level, and the manager of its clients."""

    def __init__(self, *fakes, manager=SimpleClientManager, **options):
        self.strategy = HeteroFL(build, "a1", sampling=Sampling(wait=0.0), **options)
        self.manager = manager_of(*(fakes or (Fake("0", 1.0), Fake("1", 2.0))), kind=manager)
        self.parameters = self.strategy.initialize_parameters(self.manager)

    def round(self, server_round=1):
        """Train and evaluate; return the configs for training, and the metrics of both."""
        sent = self.strategy.configure_fit(server_round, self.parameters, self.manager)
        self.parameters, trained = self.strategy.aggregate_fit(server_round, fit_all(sent), [])
        asked = self.strategy.configure_evaluate(server_round, self.parameters, self.manager)
        metrics = self.strategy.aggregate_evaluate(server_round, evaluate_all(asked), [])[1] if asked else None
        return [ins.config for _, ins in sent], trained, metrics


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        ({"milestones": [1, 2]}, r"has milestones=\[1, 2\]; expected a bool, bytes, float, int or str"),
        ({"lr": 0.1, "epochs": np.int64(3)}, r"has epochs=.*3.*; expected a bool, bytes, float, int or str"),
        (None, "is None; expected a dictionary"),
    ],
)
def test_a_config_that_flower_cannot_send_is_refused_by_its_key(returned, fault):
    for name in ("on_fit_config_fn", "on_evaluate_config_fn"):
        with pytest.raises(ConfigError, match=f"the config for clients {fault}"):
            Session(**{name: lambda server_round: returned}).round()


def test_a_function_of_metrics_gets_those_that_the_client_reported():
    def largest(answers):
        return {key: max(metrics[key] for _, metrics in answers) for key in answers[0][1]}

    reported = {"train-loss": 0.5, "labels": "0,1", "capacity": 1.0}
    fakes = [Fake(str(cid), 1.0 + cid, metrics=reported) for cid in range(2)]
    assert Session(*fakes, fit_metrics_aggregation_fn=largest).round()[1] == {"train-loss": 0.5}


def test_a_function_of_metrics_without_a_result_is_an_error():
    for name in ("fit_metrics_aggregation_fn", "evaluate_metrics_aggregation_fn"):
        with pytest.raises(ConfigError, match="a metrics_aggregation_fn returned None; expected a dictionary"):
            Session(**{name: lambda answers: None}).round()


def test_metrics_of_an_evaluation_may_have_the_names_of_what_training_reports():
    class Named(Fake):
        def evaluate(self, ins, timeout, group_id):
            return EvaluateRes(OK, 1.0, 2, {"capacity": 100, "labels": "cat,dog"})

    session = Session(Named("0"), Named("1"))
    assert session.round()[2] == {"capacity": 100.0, "coverage": 1.0}
    assert session.strategy.log.evaluate_failures == {}


def test_functions_may_be_replaced_after_the_strategy_is_made():
    session, seen = Session(), []
    session.strategy.on_fit_config_fn = lambda server_round: {"epochs": 7}
    session.strategy.evaluate_fn = lambda server_round, arrays, config: seen.append(server_round)
    session.strategy.evaluate_metrics_aggregation_fn = lambda answers: {"clients": len(answers)}
    configs, _, metrics = session.round()
    session.strategy.evaluate(1, session.parameters)
    assert ([ins["epochs"] for ins in configs], seen, metrics) == ([7, 7], [1], {"clients": 2})


def test_a_managers_own_sample_is_not_called_with_a_warning(caplog):
    class Newest(SimpleClientManager):
        def sample(self, num_clients, min_num_clients=None, criterion=None):
            raise AssertionError

    session = Session(manager=Newest)
    assert len(session.round()[0]) == len(session.round(2)[0]) == 2
    assert caplog.text.count("never calls Newest.sample: to choose others, leave clients out") == 1
    caplog.clear()
    Session().round()
    assert "sample" not in caplog.text


def test_a_model_of_a_subclass_with_buffers_is_refused_with_a_remedy():
    class Own(HeteroFL):
        def initialize_parameters(self, client_manager):
            return ndarrays_to_parameters([tensor.numpy() for tensor in build_normed(1.0).state_dict().values()])

    strategy, manager = Own(build_normed, "a1", sampling=Sampling(wait=0.0)), manager_of(Fake("0"), Fake("1"))
    with pytest.raises(ReplyError, match=r"9 arrays, expected 6; .* initialize_parameters .* parameters_of\(model\)"):
        strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)


def test_results_of_an_evaluation_of_a_subclass_alone_are_an_error():
    session = Session()
    session.round()
    asked = [(proxy, EvaluateIns(session.parameters, {})) for proxy in session.manager.all().values()]
    with pytest.raises(RoundError, match=r"no evaluation .* was configured: .* call super\(\).configure_evaluate"):
        session.strategy.aggregate_evaluate(2, evaluate_all(asked), [])


def test_a_round_that_a_subclass_does_not_train_has_its_own_evaluation():
    class Judge(Fake):
        def evaluate(self, ins, timeout, group_id):
            return EvaluateRes(OK, float(ins.config["server-round"]), 1, {"best": ins.config["server-round"]})

    session = Session(Judge("0"), Judge("1"))
    session.round()
    asked = session.strategy.configure_evaluate(2, session.parameters, session.manager)
    loss, metrics = session.strategy.aggregate_evaluate(2, evaluate_all(asked), [])
    assert (loss, metrics) == (2.0, {"best": 2.0, "coverage": 1.0})
    assert session.strategy.log.server_round == 2


def test_a_run_longer_than_it_was_told_evaluates_after_its_last_round():
    session = Session(evaluation=Evaluation(every=3), num_rounds=4)
    assert [session.round(number)[2] is not None for number in range(1, 6)] == [False, False, True, True, True]


@pytest.mark.parametrize("seconds", [None, "60", -1.0])
def test_a_round_timeout_that_is_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match=f"round_timeout is {seconds!r}; expected a number of seconds"):
        Session(round_timeout=seconds)


def test_arrays_are_no_parameters():
    with pytest.raises(ConfigError, match=r"initial_parameters, .* is a list; expected Parameters, as from ndarr"):
        Session(initial_parameters=parameters_of(build(1.0)))
    arrays = [np.full_like(array, np.nan) for array in parameters_of(build(1.0))]
    with pytest.raises(RoundError, match=r"NaN or infinity; .* initial_arrays \(initial_parameters"):
        Session(initial_parameters=ndarrays_to_parameters(arrays))


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        ((1, 0, 2, 3), "parameters is a dict, expected a list: check the order"),
        ((0, 1, 3, 2), "context is a type, expected a Context: check the order"),
        ((0, 0, 2, 3), "config is a list, expected a Mapping: check the order"),
        ((0, 1, 2, 4), "build is a model, Tiny; expected a function"),
    ],
)
def test_a_task_names_the_argument_that_is_another(order, fault):
    arguments = parameters_of(build(1.0)), config(), node_context(), build, build(1.0)
    with pytest.raises(ConfigError, match=fault):
        Task(*(arguments[place] for place in order))


@pytest.mark.parametrize(
    ("kind", "remedy"), [("moments", r"return task.moments\(batches\)"), ("evaluate", r"return \(loss, number of exam")]
)
def test_a_model_answers_training_alone(kind, remedy):
    task = Task(parameters_of(build_normed(1.0)), config(task=kind), node_context(), build_normed)
    with pytest.raises(ConfigError, match=f"this call is for .*{kind}, and reply returns a trained model: .*{remedy}"):
        task.reply(task.model(), num_examples=1)
