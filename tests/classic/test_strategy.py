"""The strategy of the classic API, its hooks called as Flower's server calls them."""

import threading

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_manager import SimpleClientManager

import heterofl_flwr
from heterofl_flwr import Evaluation, Sampling
from heterofl_flwr.classic import HeteroFL, Task, parameters_of
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.transport.compat import ErrorCode
from tests.classic.fakes import Fake, broken, evaluate_all, fit_all, fit_res, manager_of
from tests.federation.grouped import grouped
from tests.federation.tiny import build, build_normed, node_context
from tests.flower_internals import GridClientProxy

FAILED = Status(Code.FIT_NOT_IMPLEMENTED, "fit is not there")


def clients(number=3, **options):
    return [Fake(str(cid), 1.0 + cid, **options) for cid in range(number)]


def begin(fakes, mix="a1-c1", server_round=1, **options):
    strategy = HeteroFL(build, mix, **grouped({"wait": 1.0, **options}))
    manager = manager_of(*fakes)
    parameters = strategy.initialize_parameters(client_manager=manager)
    instructions = strategy.configure_fit(server_round=server_round, parameters=parameters, client_manager=manager)
    return strategy, manager, parameters, instructions


@pytest.mark.parametrize("name", ["evaluate_fn", "fit_metrics_aggregation_fn", "evaluate_metrics_aggregation_fn"])
def test_a_function_of_the_message_api_is_an_error(name):
    with pytest.raises(ConfigError, match=f"{name} is called as {name}.*, which fails: "):
        HeteroFL(build, **{name: lambda first, second: None})


@pytest.mark.parametrize("name", ["on_fit_config_fn", "on_evaluate_config_fn", "evaluate_fn"])
def test_a_config_in_place_of_its_function_is_an_error(name):
    with pytest.raises(ConfigError, match=rf"{name} is {{'lr': 0\.1}}; expected a function, called as {name}\(server_"):
        HeteroFL(build, **{name: {"lr": 0.1}})


def gain(before, after):
    return [new - old for old, new in zip(parameters_to_ndarrays(before), parameters_to_ndarrays(after), strict=True)]


@pytest.mark.parametrize("shared", [["*"], ["hidden.*"]])
def test_initial_parameters_may_be_given_with_buffers_or_without(shared):
    model = build_normed(1.0)
    expected = parameters_of(model)[: None if shared == ["*"] else 2]
    buffers_too = [own.numpy() for own in model.state_dict().values()]
    for arrays in (expected, parameters_of(model), buffers_too):
        options = grouped({"initial_parameters": ndarrays_to_parameters(arrays), "shared": shared})
        found = HeteroFL(build_normed, **options).initialize_parameters(client_manager=SimpleClientManager())
        assert all(np.array_equal(*pair) for pair in zip(parameters_to_ndarrays(found), expected, strict=True))


def test_a_query_takes_a_share_of_the_rounds_time():
    class Timed(Fake):
        def get_properties(self, ins, timeout, group_id):
            self.timeout = timeout
            return super().get_properties(ins, timeout, group_id)

    fakes = [Timed("0"), Timed("1")]
    begin(fakes, round_timeout=8.0)
    assert all(0 < fake.timeout <= 2.0 for fake in fakes)


def test_initial_parameters_of_another_model_are_refused():
    strategy = HeteroFL(build, initial_parameters=ndarrays_to_parameters([np.zeros(1, np.float32)] * 3))
    with pytest.raises(heterofl_flwr.HeteroFLError, match="initial_parameters has 3 arrays; expected 4"):
        strategy.initialize_parameters(client_manager=SimpleClientManager())


def test_instructions_share_one_packet_a_level():
    options = {"learning_rate": 0.1, "milestones": [2], "on_fit_config_fn": lambda number: {"epochs": 2 * number}}
    instructions = begin(clients(4), seed=5, server_round=3, **options)[-1]
    assert len({id(ins.parameters) for _, ins in instructions}) == 2
    assert len({id(ins.config) for _, ins in instructions}) == 4
    told = {"rate": 0.25, "rates": "0.25", "global-rate": 1.0, "server-round": 3, "seed": 5, "partition": 3}
    more = {"heterofl-schema": 2, "epochs": 6, "lr": 0.1 * 0.1, "task": "train"}
    assert instructions[3][1].config == told | more


def test_two_names_of_one_argument_are_refused():
    with pytest.raises(ConfigError, match="found fraction_fit and fraction_train, which are two names of one argument"):
        HeteroFL(build, fraction_fit=0.5, fraction_train=1.0)


def test_a_users_config_cannot_replace_fedproxs_weight():
    options = {"proximal_mu": 0.3, "on_fit_config_fn": lambda number: {"proximal_mu": 0.1}}
    with pytest.raises(ConfigError, match="has proximal_mu, but the strategy itself sends values by that name"):
        begin(clients(), "a1", **options)
    assert begin(clients(), "a1", on_fit_config_fn=options["on_fit_config_fn"])[-1][0][1].config["proximal_mu"] == 0.1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("num_round", r"did you mean num_rounds\?"),
        ("initial_paramaters", r"did you mean initial_parameters\?"),
        ("on_fit_config", r"did you mean on_fit_config_fn\?"),
        ("fit_metrics_aggr_fn", r"did you mean fit_metrics_aggregation_fn\?"),
        ("norm_bound", r"use limits=Limits\(norm_bound=...\)"),
        ("fraction_fits", "use fraction_train"),
        *(
            (name, r"use sampling=Sampling\(min_replies=...\)")
            for name in ("accept_failures", "min_completion_rate_fit")
        ),
        ("beta", r"use averaging=Averaging\(robust=Robust\(...\)\)"),
        ("inplace", "leave it out"),
        ("train_config", r"use start\(train_config=...\), or on_fit_config_fn in the classic API"),
        ("eta_l", r"use training=Training\(learning_rate=...\)"),
    ],
)
def test_an_unknown_argument_raises_an_error_with_the_one_of_this_api(name, remedy):
    with pytest.raises(TypeError, match=f"HeteroFL has no argument {name}: {remedy}"):
        HeteroFL(build, **{name: 1})


def test_levels_that_are_evaluated_last_need_the_number_of_rounds():
    evaluation = Evaluation(levels="last")
    with pytest.raises(ConfigError, match=r"evaluation\.levels is 'last', .* expected num_rounds="):
        HeteroFL(build, "a1-c1", evaluation=evaluation)
    HeteroFL(build, "a1-c1", evaluation=evaluation, num_rounds=2)
    with pytest.raises(ConfigError, match="num_rounds is '2'; expected an integer"):
        HeteroFL(build, "a1-c1", evaluation=evaluation, num_rounds="2")


def test_properties_are_asked_once_and_from_all_at_the_same_time():
    together = threading.Barrier(8)

    class Waiting(Fake):
        def get_properties(self, ins, timeout, group_id):
            together.wait(120)  # for all the others, so one after the other never get here
            return super().get_properties(ins, timeout, group_id)

    fakes = [Waiting(str(cid)) for cid in range(8)]
    strategy, manager, parameters, instructions = begin(fakes)
    assert not together.broken
    strategy.aggregate_fit(1, fit_all(instructions), [])
    strategy.configure_fit(2, parameters, manager)
    assert [fake.asked.count("properties") for fake in fakes] == [1] * 8


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        (RuntimeError("node is gone"), "node is gone"),
        (Status(Code.GET_PROPERTIES_NOT_IMPLEMENTED, ""), "GET_PROPERTIES_NOT_IMPLEMENTED"),
        ({"capacity": "z"}, "'z' is no level"),
        ({"partition": "one"}, "'one' as partition, expected int"),
    ],
)
def test_a_client_that_says_nothing_gets_the_smallest_rate(caplog, says, cause):
    strategy, _, _, _ = begin([Fake("0"), Fake("1"), Fake("2", says=says)], "a2-c1")
    assert strategy.log.rates == {0: 1.0, 1: 1.0, 2: 0.25}
    assert cause in caplog.text
    assert "1 of 3 new nodes gave no usable answer" in caplog.text
    assert ("is not converted" in caplog.text) == (cause == "GET_PROPERTIES_NOT_IMPLEMENTED")


def test_a_pattern_of_shared_parameters_may_have_a_comma():
    patterns = ("hidden.[a,w]*", "classifier.bias")
    _, ins = begin(clients(), "a1", shared=patterns)[-1][0]
    task = Task(parameters_to_ndarrays(ins.parameters), ins.config, node_context(), build)
    assert task.instruction.shared == patterns


def test_a_client_that_answers_without_a_task_is_told_how():
    strategy, _, _, instructions = begin(clients(), "a1", shared=("hidden.*",))
    (first, _), *others = instructions
    whole = [own.detach().numpy() for own in build(1.0).parameters()]
    strategy.aggregate_fit(1, [(first, fit_res(whole)), *fit_all(others)], [])
    (fault,) = strategy.log.failures.values()
    assert "sent 4 arrays, expected 2; its ClientApp is not converted: " in fault


def test_labels_travel_as_text():
    fakes = [Fake("0", 1.0, metrics={"labels": "0,1", "capacity": 1.0}), Fake("1", 2.0, metrics={"labels": "3"})]
    fakes[1].metrics["converged"] = True
    strategy, _, before, instructions = begin(fakes, "a1")
    after, metrics = strategy.aggregate_fit(1, fit_all(instructions), [])
    np.testing.assert_allclose(gain(before, after)[3], [1, 1, 0, 2], atol=1e-6)
    assert metrics == {"converged": 1.0}


def test_failures_are_listed_by_client_where_flower_names_one():
    strategy, _, _, instructions = begin(clients(4), "a1", min_replies=1)
    failed = [FitRes(status, broken(), 0, {}) for status in (FAILED, Status(Code.FIT_NOT_IMPLEMENTED, ""))]
    pairs = zip([proxy for proxy, _ in instructions[1:3]], failed, strict=True)
    strategy.aggregate_fit(1, fit_all(instructions)[:1], [*pairs, ValueError("gone")])
    said = ["fit is not there", "FIT_NOT_IMPLEMENTED", "no result; ValueError: gone"]
    assert list(strategy.log.failures.values()) == said


class Crashing:
    """A grid whose clients all raise one error, as Flower's SuperNodes report it."""

    def send_and_receive(self, messages):
        reason = "<class 'flwr.clientapp.exception.ClientAppException'>:<'\nException ClientAppException occurred. "
        reason += "Message: the disk is full'>"
        return [Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=sent) for sent in messages]


def test_an_error_is_that_of_the_client_without_flowers_texts_around_it():
    strategy, _, _, instructions = begin(clients(3), "a1", min_replies=1)
    with pytest.raises(ValueError, match="Message contains an Error") as raised:
        GridClientProxy(1, Crashing(), 1).fit(instructions[0][1], 1.0, 1)
    strategy.aggregate_fit(1, fit_all(instructions)[:1], [raised.value])
    assert [*strategy.log.failures.values()] == ["no result; the disk is full"] * 2


def test_who_is_dropped_by_a_subclass_has_not_failed(caplog):
    strategy, manager, before, instructions = begin(clients(6), "a1")
    after, _ = strategy.aggregate_fit(1, fit_all(instructions)[:2], [])
    np.testing.assert_allclose(gain(before, after)[3], 1.5, atol=1e-6)
    asked = strategy.configure_evaluate(server_round=1, parameters=after, client_manager=manager)
    assert strategy.aggregate_evaluate(1, evaluate_all(asked)[:2], [])[1]["local-accuracy"]
    assert not strategy.log.failures
    assert not strategy.log.evaluate_failures
    assert "no result" not in caplog.text
    strategy.configure_fit(server_round=2, parameters=after, client_manager=manager)
    with pytest.raises(heterofl_flwr.HeteroFLError, match="0 of 6 clients gave a usable reply"):
        strategy.aggregate_fit(2, [], [])


def test_results_of_clients_that_were_not_asked_do_not_count():
    strategy, _, before, instructions = begin(clients(2), "a1")
    results = [*fit_all(instructions), (Fake("77"), fit_res([np.full(3, 1e9, np.float32)]))]
    after, _ = strategy.aggregate_fit(1, results, [(Fake("78"), FitRes(FAILED, broken(), 0, {}))])
    np.testing.assert_allclose(gain(before, after)[3], 1.5, atol=1e-6)
    assert strategy.log.failures == {}


class TestEvaluation:
    def evaluate(self, fakes, answer=evaluate_all, failures=(), **options):
        strategy, manager, parameters, instructions = begin(fakes, **options)
        strategy.aggregate_fit(1, fit_all(instructions), [])
        asked = strategy.configure_evaluate(server_round=1, parameters=parameters, client_manager=manager)
        return strategy, asked, strategy.aggregate_evaluate(1, answer(asked), list(failures))

    def test_loss_and_metrics_are_means_weighted_by_examples(self):
        strategy, asked, (loss, metrics) = self.evaluate(clients(3), on_evaluate_config_fn=lambda number: {"b": number})
        assert [(ins.config["rate"], ins.config["task"], ins.config["b"]) for _, ins in asked] == [
            (1.0, "evaluate", 1)
        ] * 3
        assert loss == pytest.approx((1 + 4 + 9) / 6)
        assert metrics == pytest.approx({"coverage": 1.0, "local-accuracy": 3 / 6, "worst-accuracy": 1 / 3})
        assert strategy.log.evaluate["loss"] == loss

    def test_where_all_fail_there_is_no_result(self, caplog):
        failures = [ValueError("the disk is full")]
        assert self.evaluate(clients(2), answer=lambda asked: [], failures=failures)[2] == (None, {})
        assert caplog.text.count("did not evaluate: no result; ValueError: the disk is full") == 2

    def test_the_server_may_evaluate_itself(self):
        def central(server_round, arrays, config):
            return float(server_round), {"arrays": len(arrays), "config": len(config)}

        strategy = HeteroFL(build, evaluate_fn=central)
        parameters = strategy.initialize_parameters(SimpleClientManager())
        assert strategy.evaluate(3, parameters=parameters) == (3.0, {"arrays": 4, "config": 0})
        assert HeteroFL(build).evaluate(3, parameters=parameters) is None


def test_clients_are_seen_at_once_under_a_server_app():
    """Its ``wait_for`` alone would look for new nodes only every five seconds."""

    class Lazy(SimpleClientManager):
        def num_available(self):
            for client in clients(2):
                self.register(client)
            return super().num_available()

    strategy = HeteroFL(build, sampling=Sampling(wait=0.2))
    assert len(strategy.configure_fit(1, strategy.initialize_parameters(SimpleClientManager()), Lazy())) == 2
