"""The ClientApp: cohorts that train together, and what static batch norm is measured on."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import nn

from heterofl_flwr import HeteroFLError
from heterofl_flwr.app import client_app
from heterofl_flwr.app.node import AppTask
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.data import Split
from heterofl_flwr.settings.validate import DEFAULTS, from_flat
from heterofl_flwr.training import EvaluateResult
from heterofl_flwr.training.engines.cohort import Cohort
from heterofl_flwr.transport import messages as wire
from tests.app.runs import run_rounds
from tests.federation.tiny import node_context

SMALL = {**DEFAULTS, "mix": "a1-e1", "assignment": "dynamic", "model.hidden": "8,16", "train.epochs": 1}
SMALL |= {"train.batch-size": 50}
SMALL |= {"evaluate.every": 0, "run.callbacks": "", "num-rounds": 2, "data.split": "non-iid-2"}
CLIENTS = 6


@pytest.fixture
def sizes(monkeypatch):
    """Return a list that gets the number of clients whenever some train together."""
    seen = []
    train_cohort = client_app.CohortApp.train_cohort

    def noted(messages, contexts):
        seen.append(len(messages))
        return train_cohort(messages, contexts)

    monkeypatch.setattr(client_app.CohortApp, "train_cohort", staticmethod(noted))
    return seen


def last_round(cohort, *, by_rate=True, **changes):
    return run_rounds({**SMALL, **changes}, CLIENTS, cohort=cohort, by_rate=by_rate)[-1]


def test_clients_learn_together_what_each_learns_alone(sizes):
    alone = last_round(1, **{"engine.name": "plain"})
    assert sizes == []
    together = last_round(2, **{"engine.name": "plain"})
    assert set(sizes) == {2}
    assert all(torch.equal(tensor, together.state[name]) for name, tensor in alone.state.items())
    assert alone.record.train == together.record.train
    assert alone.record.train_by_level == together.record.train_by_level


def test_clients_of_all_levels_train_in_seats_what_each_learns_alone(sizes, channels_first):
    alone = last_round(1, **{"engine.name": "plain"})
    together = last_round(50, by_rate=False, **{"engine.name": "seats"})
    assert set(sizes) == {CLIENTS}
    assert all(torch.equal(tensor, together.state[name]) for name, tensor in alone.state.items())
    assert alone.record.train_by_level == together.record.train_by_level


def test_clients_of_a_cohort_mask_each_its_own_change(sizes, monkeypatch):
    monkeypatch.setattr("heterofl_flwr.stages.secure_sum.secrets.randbits", lambda bits: 0)  # equal seeds
    same = {"mix": "a1", "assignment": "fix", "engine.name": "plain", "train.labels": "none"}
    plain, masked = (last_round(3, **same, **{"server.stages": own}) for own in ("", "secure-sum"))
    assert set(sizes) == {3}
    assert masked.record.stages == {"summed-clients": CLIENTS, "closed-fraction": 0}
    for name, own in plain.state.items():
        torch.testing.assert_close(masked.state[name], own, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stages", [pytest.param("feddyn(0.1)", marks=pytest.mark.slow), "scaffold"])
def test_quadratic_penalties_train_together_as_alone(stages, monkeypatch):
    """In the engine ``cohort``, which no other penalty enters, the model is that of ``plain`` up to rounding."""
    same = {"mix": "a1", "assignment": "fix", "server.stages": stages, "model.norm": "gn", "model.name": "cnn"}
    alone = last_round(1, **same, **{"engine.name": "plain"})
    entered, train = [], Cohort.train
    monkeypatch.setattr(Cohort, "train", lambda self: entered.append(len(self._clients)) or train(self))
    together = last_round(3, **same, **{"engine.name": "cohort"})
    assert entered == [3] * 4
    for name, tensor in alone.state.items():
        torch.testing.assert_close(together.state[name], tensor, atol=1e-4, rtol=1e-3)


def asked(rate=1.0, **changes):
    """Return a message to train, and the context of its node."""
    settings = {**SMALL, **changes}
    parameters = ArrayRecord(dict(load_workload(settings).build(rate).named_parameters()))
    config = {wire.SEED: 0, wire.SERVER_ROUND: 1, wire.GLOBAL_RATE: 1.0}
    config |= {wire.RATE: rate, wire.PARTITION: 0, wire.LEARNING_RATE: 0.1}
    content = RecordDict({wire.ARRAYS: parameters, wire.CONFIG: wire.new_config(config)})
    return Message(content, 2, "train"), node_context(settings, partition_id=0, num_partitions=CLIENTS)


@pytest.mark.usefixtures("identity")
def test_penalties_leave_out_a_clients_own_layers():
    """A job of the engines has the penalty that ``task.penalty`` returns to a user's loop."""
    message, context = asked(**{"server.shared": "*linear*", "mix": "a1"})
    received = message.content[wire.ARRAYS]
    for name in [name for name in received if "linear" not in name]:
        del received[name]
    message.content[wire.CONFIG].update({wire.PROXIMAL_MU: 0.5, wire.SHARED: ["*linear*"]})
    tasks = [AppTask(message, context) for _ in range(2)]
    job, model = tasks[0].training_job(tasks[0].load_model()), tasks[1].load_model()
    assert tasks[0].options.proximal == 0
    for own in (job.model, model):
        with torch.no_grad():
            for parameter in own.parameters():
                parameter += 1
    number = sum(parameter.numel() for name, parameter in model.named_parameters() if "linear" in name)
    assert job.penalty().item() == tasks[1].penalty(model).item() == pytest.approx(0.25 * number)


@pytest.mark.usefixtures("identity")
def test_other_learning_rates_are_no_cohort():
    messages, contexts = zip(asked(), asked(), strict=True)
    messages[1].content[wire.CONFIG][wire.LEARNING_RATE] = 0.2
    with pytest.raises(HeteroFLError, match="differ in learning rate"):
        client_app.app.train_cohort(messages, contexts)


@pytest.mark.usefixtures("identity")
def test_moments_of_all_rates_are_of_the_same_inputs(monkeypatch):
    def measure(task, batches, *_, **__):
        first, second = (next(iter(batches())).add_(1).clone() for _ in range(2))  # as by a model that changes inputs
        assert torch.equal(first, second)

    monkeypatch.setattr(client_app, "answer_moments", measure)
    message, context = asked()
    message.content[wire.CONFIG].update({wire.RATES: [1.0, 0.0625]})
    client_app.moments_query(message, context)


@pytest.mark.usefixtures("identity")
def test_out_of_memory_names_the_level(monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(client_app, "train_together", fail)
    with pytest.raises(HeteroFLError, match=r"out of memory at level e on cpu: Tried to allocate 2\.00 GiB"):
        client_app.train_message(*asked(0.0625))


NON_IID = {"data.split": "non-iid-2", "train.batch-size": 5}


def _classes_by_batch(workload):
    """Return the classes in each batch of a client's moments, which it reads by the numbers of its examples."""
    data = workload.part(0, 20)
    split, classes = data.train, data.classes
    assert len(classes) == 2
    numbers = torch.arange(len(split), dtype=torch.float32)[:, None, None, None]
    by_number = Split(numbers, split.targets, reading=None)
    batches = [batch.flatten().long() for batch in workload.moments_batches(by_number, seed=3)]
    assert sorted(torch.cat(batches).tolist()) == list(range(len(split)))
    return [split.targets[batch].unique().tolist() for batch in batches]


def test_batches_mix_the_classes_of_a_client():
    fixed = {"fidelity": "fixed", "evaluate.moments-batch-size": 5}
    stored = _classes_by_batch(Workload(from_flat(NON_IID | fixed)))
    mixed = _classes_by_batch(Workload(from_flat(NON_IID)))
    assert sum(len(classes) == 2 for classes in stored) <= 1
    assert sum(len(classes) == 2 for classes in mixed) > len(mixed) / 2


@pytest.mark.parametrize(("moments", "varied"), [("paper", True), ("fixed", False)])
def test_images_are_varied_where_the_authors_vary_them(monkeypatch, moments, varied):
    workload = Workload(from_flat({"fidelity": moments}))
    split = workload.part(0, 20).train
    monkeypatch.setitem(workload.__dict__, "facts", type(workload.facts)((1, 8, 8), 10, "crop-flip"))
    found = torch.cat(list(workload.moments_batches(split, seed=1)))
    assert (sorted(found.sum((1, 2, 3)).tolist()) != sorted(split.inputs.sum((1, 2, 3)).tolist())) == varied


class Below(nn.Module):
    """All logits are below 0, the largest that of the last class."""

    def forward(self, x):
        return (torch.arange(10.0) - 20).expand(len(x), -1)


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize(("fill", "answered"), [("zero", False), ("-inf", True), ("none", False)])
def test_local_metrics_have_the_mask_of_training(monkeypatch, fill, answered):
    task = AppTask(*asked(**{"train.mask-fill": fill}))
    test, classes = task.data.test, task.data.classes
    absent = [number for number in range(10) if number not in classes]
    found = client_app._evaluate(task, Below(), classes)
    answer = max(classes) if answered or (fill == "none" and 9 in classes) else -1
    expected = (test.targets == answer).float().mean().item()
    assert found["local-accuracy"] == pytest.approx(expected)
    foreign = client_app._evaluate(task, Below(), absent)
    assert ("local-loss" in foreign) == (fill != "-inf")
    of_text = EvaluateResult(3, 1.0, 1, 2.0), EvaluateResult(3, torch.inf, 1, torch.inf)
    monkeypatch.setattr(client_app, "evaluate_each", lambda *_, **__: of_text)
    assert "local-perplexity" not in client_app._evaluate(task, Below(), absent)


def test_models_of_an_evaluation_are_loaded_once_for_all_clients(monkeypatch):
    loaded = []
    build_models = AppTask.build_models

    def noted(task):
        loaded.append(task.instruction.server_round)
        return build_models(task)

    monkeypatch.setattr(AppTask, "build_models", noted)
    config = {**SMALL, "model.name": "cnn", "evaluate.every": 1, "evaluate.nodes": "all", "model.hidden": "4,4"}
    first, second = run_rounds(config, CLIENTS, cohort=1)
    assert loaded == [1, 1, 2, 2]  # the moments' model and the evaluated one, not one for each client
    # Each client's own forward pass: the same numbers as when every client loads its own models.
    monkeypatch.setattr(AppTask, "models", lambda task: iter(build_models(task)))
    again = run_rounds(config, CLIENTS, cohort=1)
    assert [progress.record.evaluate for progress in again] == [first.record.evaluate, second.record.evaluate]
    assert first.record.evaluate != second.record.evaluate
