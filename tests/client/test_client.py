"""The task of a ClientApp: the model of a message, its reply; and the answers to queries."""

import copy
import re
from dataclasses import replace
from functools import partial
from reprlib import repr as shown

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import Plan
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.client.node_config import read_capability
from heterofl_flwr.client.outgoing import warn_once
from heterofl_flwr.client.queries import answer_moments
from heterofl_flwr.client.state import load_tensors, save_tensors
from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import pack_moments, read_tensors, unpack_moments
from tests.federation.tiny import Tiny, build, build_normed, equal, inputs, node_context

pytestmark = pytest.mark.usefixtures("identity")


def state_of(rate, build=build, fill=None):
    model = build(rate)
    if fill is not None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, fill)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def instruction(rate=1.0, kind="train", *, state=None, build=build, moments=None, **values):
    config = {"rate": rate, "seed": 0, "server-round": 1, "partition": 0}
    config |= {key.replace("_", "-"): value for key, value in values.items()}
    state = state_of(rate, build) if state is None else state
    content = {"arrays": ArrayRecord(state), "config": messages.new_config(config)}
    if moments:
        content["moments"] = pack_moments(moments)
    return Message(RecordDict(content), 7, kind)


def task_of(message, build=build, context=None):
    """Return the task of a message to a node that keeps nothing."""
    return Task(message, context or node_context(), build)


def trained(task, partition=2):
    """Return a task's model after a step on a node's own data, so that no two entries change alike."""
    model = task.model()
    model(inputs(partition)).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    return model


class Closes(nn.Module):
    """A model that calls its layers by a function that refers to the model itself."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.forward = lambda x: self.layers(x)


@pytest.mark.parametrize(("program", "lines"), [("/bin/flwr-clientapp", 1), ("/bin/flwr-simulation", 0)])
def test_a_nodes_log_has_the_level_of_each_message(monkeypatch, caplog, program, lines):
    monkeypatch.setattr("sys.argv", [program])
    with caplog.at_level("INFO", "flwr"):
        task_of(instruction(0.25))
    assert caplog.messages == ["round 1: train at level c (rate 0.25)"] * lines


class TestSubmodel:
    @pytest.mark.parametrize("rate", [1.0, 0.5, 0.3, 0.0625])
    def test_it_has_the_rate_and_the_parameters_of_the_message(self, rate):
        message = instruction(rate)
        model = task_of(message).model()
        assert equal(dict(model.named_parameters()), message.content["arrays"].to_torch_state_dict())
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    def test_static_moments_are_those_of_the_message(self):
        moments = {1.0: collect_moments(build_normed(1.0), [inputs(0)])}
        model = task_of(instruction(kind="evaluate", build=build_normed, moments=moments), build_normed).model()
        mean, variance = moments[1.0].statistics("norm")
        torch.testing.assert_close(model.norm.running_mean, mean.float())
        torch.testing.assert_close(model.norm.running_var, variance.float())

    def test_without_moments_models_normalise_by_batch(self):
        model = task_of(instruction(kind="evaluate", build=build_normed), build_normed).model()
        hidden = model.norm(model.hidden(inputs(3)))
        torch.testing.assert_close(hidden.mean(0), torch.zeros(8), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("measured", [True, False])
    def test_a_function_that_refers_to_the_model_is_evaluated_too(self, measured):
        """In a copy of the model, it would use the original's layers, which are in training mode."""
        moments = {1.0: collect_moments(Closes(), [inputs(0)])} if measured else None
        model = task_of(instruction(kind="evaluate", build=Closes, moments=moments), Closes).model()
        assert torch.equal(model(inputs(3)), model.layers(inputs(3)))

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    def test_a_model_to_evaluate_does_not_spoil_those_to_train(self, mode):
        with mode():
            task_of(instruction(kind="evaluate"), build).model()
            model = task_of(instruction(), build).model()
        assert not any(own.is_inference() for own in model.parameters())
        model(inputs(0)).sum().backward()

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"state": state_of(0.5)}, r"hidden.bias: \(4,\), expected \(8,\)"),
            ({"state": {"hidden.bias": torch.ones(8)}}, r"classifier.bias: None, expected \(4,\)"),
            ({"rate": "a"}, "the server sent 'a' as rate, expected float"),
        ],
        ids=["shape", "missing", "rate"],
    )
    def test_what_does_not_fit_is_refused_by_name(self, change, named):
        with pytest.raises(ReplyError, match=named):
            task_of(instruction(**{"state": state_of(1.0)} | change), build).model()

    @pytest.mark.parametrize("told", [None, {"server-round": 1, "lr": 0.1}])
    def test_under_another_strategy_the_error_says_so(self, told):
        message = instruction()
        del message.content["config"]
        if told:
            message.content["config"] = ConfigRecord(told)
        with pytest.raises(ReplyError, match=r"the server's strategy is not HeteroFL: use heterofl_flwr\.HeteroFL"):
            task_of(message)


def test_what_a_client_keeps_outlives_the_next_message():
    state = {name: tensor for name, tensor in state_of(1.0).items() if name.startswith("hidden")}
    values = {"shared": ["hidden.*"], "global_rate": 1.0, "state": state}
    task, context = task_of(instruction(**values), context=(context := node_context())), context
    model = task.model()
    nn.init.constant_(model.classifier.weight, 5.0)
    task.reply(model, num_examples=1)
    nn.init.constant_(model.classifier.weight, 6.0)  # the caller may go on training it
    task_of(instruction(**values, partition=1)).model()  # another client of the same process
    saved = load_tensors(context, replace(task.instruction, kind="evaluate"))
    assert saved.keys() == {"classifier.weight", "classifier.bias"}
    assert torch.equal(saved["classifier.weight"], torch.full((4, 8), 5.0))


class TestModelsToEvaluate:
    RATES = (1.0, 0.5, 0.0625)

    def test_each_rate_is_cut_from_what_came(self):
        message = instruction(kind="evaluate", rates=list(self.RATES))
        state = message.content["arrays"].to_torch_state_dict()
        found = dict(task_of(message).models())
        assert list(found) == list(self.RATES)
        for rate, model in found.items():
            assert not model.training
            assert equal(dict(model.named_parameters()), Plan.of(build(1.0), build(rate)).extract(state))

    def test_what_a_client_kept_is_in_each_of_them(self):
        shared = {"shared": ["hidden.*"], "global_rate": 1.0}
        state = {name: own for name, own in state_of(1.0).items() if name.startswith("hidden")}
        own = {name: one for name, one in state_of(1.0, fill=5.0).items() if name not in state}
        message = instruction(kind="evaluate", rates=list(self.RATES), state=state, **shared)
        task = task_of(message, context=(context := node_context()))
        save_tensors(context, task.instruction, own)
        found = dict(task.models())
        assert [found[rate].classifier.weight.unique().tolist() for rate in self.RATES] == [[5.0]] * 3
        assert torch.equal(found[1.0].hidden.weight, state["hidden.weight"])


class TestReply:
    def test_it_stays_as_it_is_when_its_model_is_used_again(self):
        task = task_of(instruction())
        model = trained(task)
        sent = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        reply = task.reply(model, num_examples=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        assert equal(read_tensors(reply.content["arrays"]), sent)

    def test_it_brings_parameters_metrics_labels_and_capacity(self):
        message = instruction(0.5, build=build_normed)
        task = task_of(message, build_normed)
        model = task.model()
        labels = torch.tensor([3, 1, 3])
        answer = task.reply(model, num_examples=9, labels=labels, metrics={"loss": torch.tensor(0.5)}, capacity="b")
        assert answer.metadata.reply_to_message_id == message.metadata.message_id
        assert equal(answer.content["arrays"].to_torch_state_dict(), dict(model.named_parameters()))
        assert dict(answer.content["metrics"]) == {"loss": 0.5, "num-examples": 9}
        assert dict(answer.content["config"]) == {"heterofl-schema": 2, "labels": [1, 3], "capacity": 0.5}

    @pytest.mark.parametrize(
        "value",
        ["12", b"12", pytest.param(10**400, id="huge"), None, torch.ones(2), np.ones(2), [1.0, "a"], {"a": 1.0}],
    )
    def test_metrics_that_are_no_numbers_are_named(self, value):
        said = re.escape(f"metrics['loss'] is {shown(value)}; expected a number, or a list of numbers")
        with pytest.raises(ConfigError, match=said):
            task_of(instruction(kind="evaluate")).reply(
                num_examples=3, metrics={"accuracy": np.float32(0.5), "loss": value}
            )

    def test_metrics_without_names_are_an_error(self):
        with pytest.raises(ConfigError, match=r"metrics is \[1\.0\]; expected a dictionary, such as {'loss': 0\.5}"):
            task_of(instruction(kind="evaluate")).reply(num_examples=3, metrics=[1.0])

    def test_a_metric_may_repeat_the_number_of_examples_and_not_contradict_it(self):
        values = {"num-examples": 3.0}
        assert task_of(instruction(kind="evaluate")).reply(num_examples=3, metrics=values).content["metrics"] == values
        with pytest.raises(ConfigError, match=re.escape("metrics['num-examples'] is 3.0, and num_examples is 4: ")):
            task_of(instruction(kind="evaluate")).reply(num_examples=4, metrics=values)

    @pytest.mark.parametrize(
        ("swapped", "text"),
        [
            (lambda message, context: (context, message, build), "message is a Context, expected a Message"),
            (lambda message, context: (message, build, context), "context is a type, expected a Context"),
        ],
    )
    def test_swapped_arguments_are_named(self, swapped, text):
        with pytest.raises(ConfigError, match=text):
            Task(*swapped(instruction(), node_context()))

    @pytest.mark.parametrize("number", [1.5, "200", None, [3]])
    def test_a_number_of_examples_is_a_whole_one(self, number):
        with pytest.raises(ConfigError, match=re.escape(f"num_examples is {number!r}; expected a whole number")):
            task_of(instruction(kind="evaluate")).reply(num_examples=number)

    @pytest.mark.parametrize("number", [3, np.int64(3), torch.tensor(3)])
    def test_a_number_of_examples_may_be_of_any_library(self, number):
        assert task_of(instruction(kind="evaluate")).reply(num_examples=number).content["metrics"]["num-examples"] == 3

    @pytest.mark.parametrize(
        "change",
        [nn.DataParallel, copy.deepcopy, lambda model: build(1.0), lambda model: trained(task_of(instruction()))],
    )
    def test_another_model_than_the_tasks_own_is_refused(self, change):
        task = task_of(instruction())
        other, examples = change(task.model()), (torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(ConfigError, match=r"is not the model of this task: give task.reply what task.model\(\)"):
            task.reply(other, num_examples=1)
        with pytest.raises(ConfigError, match=r"is not the model of this task: give task.loss what task.model\(\)"):
            task.loss(other, examples, nn.functional.cross_entropy)
        with pytest.raises(ConfigError, match=r"is not the model of this task: give task.keep what task.model\(\)"):
            task.keep(other)

    def test_a_model_whose_parameters_have_other_names_is_refused(self):
        task = task_of(instruction())
        model = task.model()
        model.add_module("hidden", nn.Sequential(model.hidden))
        with pytest.raises(ConfigError, match=r"lost parameters .*\(hidden.bias, hidden.weight\)"):
            task.reply(model, num_examples=1)

    def test_a_reply_to_training_has_a_model_and_one_to_an_evaluation_has_none(self):
        with pytest.raises(ConfigError, match="this NoneType is not the model of this task"):
            task_of(instruction()).reply(num_examples=1)
        with pytest.raises(ConfigError, match="this OrderedDict is not the model of this task"):
            task_of(instruction()).reply(build(1.0).state_dict(), num_examples=1)
        task = task_of(instruction(kind="evaluate"))
        with pytest.raises(ConfigError, match="an evaluation carries no parameters and no capacity"):
            task.reply(task.model(), num_examples=1)
        with pytest.raises(ConfigError, match="an evaluation carries no parameters and no capacity"):
            task.reply(num_examples=1, capacity="c")

    def test_a_task_is_answered_once(self):
        task = task_of(instruction())
        model = trained(task)
        task.reply(model, num_examples=1)
        for again in (lambda: task.reply(model, num_examples=1), task.model, lambda: next(task.models())):
            with pytest.raises(ConfigError, match="has been answered"):
                again()

    def test_a_model_that_nothing_changed_is_warned_of_once(self, caplog):
        warn_once.cache_clear()
        for number in range(3):
            task = task_of(instruction(partition=number))
            task.reply(task.model(), num_examples=1)
        assert [record.message for record in caplog.records if "nothing was trained" in record.message] != []
        assert len(caplog.records) == 1
        assert "drop_last=True" in caplog.text  # the usual cause at clients with few examples
        caplog.clear()
        task = task_of(instruction())
        task.reply(trained(task), num_examples=1)
        assert caplog.records == []

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_a_model_trained_in_another_type_is_sent_in_the_received_one(self, dtype, caplog):
        warn_once.cache_clear()
        task = task_of(instruction())
        model = task.model().to(dtype)
        with torch.no_grad():
            model.classifier.bias.fill_(0.5)
        sent = task.reply(model, num_examples=1).content["arrays"].to_torch_state_dict()
        assert {tensor.dtype for tensor in sent.values()} == {torch.float32}
        assert torch.equal(sent["classifier.bias"], torch.full((4,), 0.5))
        assert f"parameters trained in {dtype} are sent in torch.float32" in caplog.text

    def test_a_penalty_that_was_asked_for_and_not_used_is_warned_of(self, caplog):
        warn_once.cache_clear()
        for used in (True, False):
            task = task_of(instruction(proximal_mu=0.1))
            model = trained(task)
            if used:
                assert task.penalty(model) > 0
            task.reply(model, num_examples=1)
            assert ("add task.penalty(model) to the loss" in caplog.text) == (not used)

    def test_a_penalty_beside_the_loss_that_includes_it_raises(self):
        task = task_of(instruction(proximal_mu=0.1))
        model = task.model()
        loss = task.loss(model, (torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)), nn.functional.cross_entropy)
        with pytest.raises(ConfigError, match=r"leave out task\.penalty"):
            loss + task.penalty(model)

    def test_parameters_that_are_trained_and_not_sent_are_warned_of(self, caplog):
        def freezing(rate):
            model = build(rate)
            model.hidden.requires_grad_(False)
            return model

        warn_once.cache_clear()
        state = {name: tensor for name, tensor in state_of(1.0).items() if name.startswith("classifier")}
        task = task_of(instruction(state=state), freezing)
        model = task.model()
        with torch.no_grad():
            model.classifier.bias += 1
        model.hidden.requires_grad_(True)
        task.reply(model, num_examples=1)
        assert "hidden.bias, hidden.weight" in caplog.text

    def test_what_training_changes_and_no_client_sends_is_warned_of(self, caplog):
        def tracking(rate):
            model = build(rate)
            model.hidden.requires_grad_(False)
            model.register_buffer("center", torch.zeros(3))
            model.register_buffer("mask", torch.ones(3))
            model.register_buffer("cache", torch.zeros(3), persistent=False)
            model.norm = nn.BatchNorm1d(4, affine=False)
            return model

        warn_once.cache_clear()
        state = {name: tensor for name, tensor in state_of(1.0).items() if name.startswith("classifier")}
        for changes in (False, True):
            task = task_of(instruction(state=state), tracking)
            model = task.model().double()  # another type is no change
            model.cache += 1
            model.norm(torch.randn(4, 4, dtype=torch.float64))
            with torch.no_grad():
                model.classifier.bias += 1
                if changes:
                    model.center += 1
                    model.hidden.bias.data = model.hidden.bias * 2
            task.reply(model, num_examples=1)
            assert ("training changes center, hidden.bias, which clients do not send" in caplog.text) == changes

    def test_batch_norm_that_training_runs_in_evaluation_mode_is_warned_of(self, caplog):
        def normed(rate):
            return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

        warn_once.cache_clear()
        for frozen in (False, True):
            task = task_of(instruction(state=state_of(1.0, normed)), normed)
            model = task.model()
            model[1].train(not frozen)
            model(inputs(0)).square().sum().backward()
            torch.optim.SGD(model.parameters(), 0.01).step()
            task.reply(model.eval(), num_examples=1)  # after a validation, say
            assert ("batch norm (1) in evaluation mode" in caplog.text) == frozen

    def test_no_labels_and_no_classes_are_not_the_same(self):
        assert "labels" not in task_of(instruction(kind="evaluate")).reply(num_examples=1).content["config"]
        assert task_of(instruction(kind="evaluate")).reply(num_examples=1, labels=[]).content["config"]["labels"] == []


class TestQueries:
    @pytest.mark.parametrize(
        ("node", "said"),
        [
            ({}, {}),
            ({"level": "b"}, {"capacity": 0.5}),
            ({"partition_id": "3", "num_partitions": "9"}, {"partition": 3, "num-partitions": 9}),
            ({"device": "phone", "rate": 0.25, "partition_id": 0}, {"capacity": 0.25, "partition": 0}),
        ],
    )
    def test_a_node_says_what_its_config_says(self, node, said):
        assert read_capability(node_context(**node)) == said

    @pytest.mark.parametrize(
        ("node", "named"),
        [
            (
                {"level": "f", "partition-id": 3},
                r"config \(partition-id=3\): 'f' is no level: expected one of a \(1\), b",
            ),
            ({"rate": 3}, r"^rate in the node config: 3 is no level"),
            ({"level": "a", "rate": 1.0}, "both level and rate: keep one"),
            ({"Level": "c"}, "the node config has Level='c', .* write level="),
            ({"capacity": "c"}, "the node config has capacity='c', .* write level="),
            ({"Partition_ID": 3}, "write partition-id="),
            ({"partition_id": "first"}, "partition-id='first'; expected a whole number"),
            ({"partition_id": -1}, "partition-id=-1; expected a whole number of 0 or more"),
            ({"partition_id": -1, "num_partitions": 4}, "partition-id=-1; expected a whole number of 0 or more"),
            ({"partition_id": 0, "num_partitions": 0}, "num-partitions=0; expected a whole number of 1 or more"),
            ({"partition_id": 4, "num_partitions": 4}, "partition-id=4 and num-partitions=4; expected .* from 0 to 3"),
        ],
    )
    def test_a_config_that_means_nothing_is_refused(self, node, named):
        with pytest.raises(ConfigError, match=named):
            read_capability(node_context(**node))

    def test_an_app_answers_after_one_call(self):
        app = ClientApp()
        answer_queries(app, build_normed, data=lambda context: [inputs(context.node_config["partition-id"])])
        asked = Message(RecordDict({"config": messages.new_config({})}), 7, "query.capability")
        assert dict(app(asked, node_context(level="c")).content["config"]) == {"heterofl-schema": 2, "capacity": 0.25}
        asked = instruction(kind="query.moments", build=build_normed, rates=[1.0, 0.5], moments_kind="fixed")
        record = app(asked, node_context(partition_id=4)).content["moments"]
        for rate in (1.0, 0.5):
            assert unpack_moments(record, rate, "it").layers["norm"].count == 10

    def test_a_node_whose_config_has_no_level_may_choose_one(self):
        app = ClientApp()
        answer_queries(app, build, capacity=lambda context: "b" if context.run_config.get("memory") else "z")
        asked = Message(RecordDict({"config": messages.new_config({})}), 7, "query.capability")
        for context, rate in (
            (node_context({"memory": True}), 0.5),
            (node_context(level="c"), 0.25),
            (node_context(rate=0.3), 0.3),
        ):
            assert app(asked, context).content["config"]["capacity"] == rate
        with pytest.raises(ConfigError, match=r"capacity\(context\): 'z' is no level: expected one of a"):
            app(asked, node_context())
        with pytest.raises(ConfigError, match="capacity: 'z' is no level"):
            task_of(instruction(kind="evaluate")).reply(num_examples=3, capacity="z")

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ((build, ClientApp()), "app is a type, expected a ClientApp: check the order of the arguments"),
            ((ClientApp(), build_normed(1.0)), "build is a model"),
            ((ClientApp(), build, [inputs(0)]), r"data is .*; expected a function, called as data\(context\)"),
        ],
    )
    def test_arguments_of_another_type_are_refused_before_a_message_comes(self, arguments, text):
        with pytest.raises(ConfigError, match=text):
            answer_queries(*arguments)

    def test_the_model_may_depend_on_the_run_config(self):
        app, seen = ClientApp(), []

        def build_from(context):
            seen.append(context.run_config["norm"])
            return partial(Tiny, norm=context.run_config["norm"])

        answer_queries(app, data=lambda context: [inputs(0)], build_from=build_from)
        asked = instruction(kind="query.moments", build=build_normed, moments_kind="fixed")
        record = app(asked, node_context({"norm": True})).content["moments"]
        assert unpack_moments(record, 1.0, "it").layers["norm"].count == 6
        assert seen == [True]

    @pytest.mark.parametrize(
        "batch",
        [lambda x: (x, torch.zeros(len(x))), lambda x: [x, 3], lambda x: {"img": x, "label": torch.zeros(len(x))}],
        ids=["tuple", "list", "mapping"],
    )
    def test_batches_of_any_usual_form(self, batch):
        message = instruction(kind="query.moments", build=build_normed, moments_kind="paper")
        found, expected = (
            answer_moments(task_of(message, build_normed), lambda own=own: [own(inputs(0)), own(inputs(1))]).content[
                "moments"
            ]
            for own in (batch, lambda x: x)
        )
        assert equal(found.to_torch_state_dict(), expected.to_torch_state_dict())
