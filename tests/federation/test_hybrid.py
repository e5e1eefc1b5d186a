"""The hybrid on the server: slices within a family, posteriors between families, and what is refused."""

import math

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, Hybrid, LocalGrid, Robust, messages
from heterofl_flwr.client import answer_moments, reply, submodel
from heterofl_flwr.core import width
from heterofl_flwr.errors import ConfigError, RoundError
from heterofl_flwr.federation.families import within
from heterofl_flwr.local_model import model_at, parameters_of
from heterofl_flwr.report import RunFolder
from heterofl_flwr.runs.recorder import Recorder
from tests.federation.tiny import Watched, build, build_normed, equal, inputs, judge, make_app, untimed

CLASSES, BATCH, NODES = 4, 5, 6
MIX = "a1-c1"
NEVER = Evaluation(every=0)


class Deep(nn.Module):
    """Another architecture than ``Tiny``, some of whose parameters have the same names."""

    def __init__(self, rate):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(3, width(6, rate)), nn.ReLU(), nn.Linear(width(6, rate), width(4, rate)))
        self.classifier = nn.Linear(width(4, rate), 4)

    def forward(self, x):
        return self.classifier(self.hidden(x))


BUILDS = {"tiny": build_normed, "deep": Deep}


def partition_of(context):
    return context.node_config["partition-id"]


def posterior(partition):
    return torch.tensor([0.1 * (partition + 1), 0.1, 0.1, 0.8 - 0.1 * (partition + 1)]).repeat(BATCH, 1)


def work(message, context, model):
    """Train: a sum that depends on client and round, on half of the classes."""
    partition = partition_of(context)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (1 + partition) / (1 + message.content["config"]["server-round"])
    return {"num_examples": 1 + partition, "labels": [partition % 4, 3], "metrics": {"loss": partition}}


def app_of(builds=BUILDS, said=None, odd=None):
    """Return an app of families that answers plain instructions to train too, with the same work."""

    def own(message, context):
        config = message.content["config"]
        names = list(builds)
        return builds[config.get("family", names[partition_of(context) % len(names)])]

    def train(message, context):
        model = submodel(message, own(message, context))
        return reply(message, model, **work(message, context, model))

    def evaluate(message, context):
        return judge(message, context, build=own(message, context))

    def moments(message, context):
        return answer_moments(message, own(message, context), lambda: [inputs(partition_of(context))])

    app = make_app(train, evaluate, moments=moments)

    @app.train("publish")
    def _(message, context):
        model = submodel(message, own(message, context))
        told = work(message, context, model)
        context.state["slice"] = ArrayRecord(parameters_of(model))
        context.state["before"] = message.content["arrays"]
        context.state["told"] = ConfigRecord({"labels": told["labels"]})
        content = {
            messages.POSTERIORS: ArrayRecord(
                {messages.POSTERIORS: (said or {}).get(partition_of(context), posterior(partition_of(context)))}
            ),
            messages.CONFIG: messages.new_config({}),
            messages.METRICS: MetricRecord({messages.NUM_EXAMPLES: told["num_examples"], **told["metrics"]}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.train("learn")
    def _(message, context):
        partition, rate = partition_of(context), message.content["config"]["rate"]
        if partition in (odd or {}):
            return odd[partition](message)
        heard = message.content[messages.POSTERIORS].to_torch_state_dict()[messages.POSTERIORS]
        model = model_at(own(message, context), context.state["slice"].to_torch_state_dict(), rate, rate)
        message.content["arrays"] = context.state["before"]
        labels = list(context.state["told"]["labels"])
        return reply(message, model, num_examples=1 + partition, labels=labels, metrics={"heard": len(heard)})

    return app


def play(builds=BUILDS, said=None, odd=None, *, num_rounds=1, nodes=NODES, mix=MIX, **options):
    options = {"evaluation": NEVER, "seed_size": 10, "seed_batch": BATCH, "classes": CLASSES, **options}
    strategy = Hybrid(builds, mix, **options)
    with Watched(app_of(builds, said, odd), nodes) as grid:
        state = strategy.start(grid, num_rounds=num_rounds).arrays.to_torch_state_dict()
    return strategy, grid, state


def alone(build, turn=0, number=1, *, num_rounds=1, mix=MIX, nodes=NODES, **options):
    """Return HeteroFL's state with those clients alone whose partitions leave a remainder."""
    partitions = range(turn, nodes, number)
    # Their partitions say that there are more clients, for whom it shall not wait.
    strategy = HeteroFL(build, mix, **{"evaluation": NEVER, "wait": 0.01, **options})
    own = {place: {"partition-id": partition} for place, partition in enumerate(partitions)}
    with LocalGrid(app_of({"only": build}), len(partitions), node_config=own.__getitem__) as grid:
        state = strategy.start(grid, num_rounds=num_rounds).arrays.to_torch_state_dict()
    return strategy, state


FORMS = [
    {"assignment": "dynamic"},
    {"assignment": "dynamic", "server_momentum": 0.5, "slice_rule": "rolling"},
    {"assignment": "dynamic", "robust": Robust(), "slice_rule": "random-level"},
    {"assignment": "dynamic", "upload": "int8", "weights": "examples", "slice_rule": "random-client"},
]


@pytest.mark.parametrize("options", FORMS)
def test_families_that_learn_nothing_from_one_another_are_runs_of_their_own(options):
    strategy, _, state = play(num_rounds=3, **options)
    assert strategy.log.failures == {}
    for turn, (name, own) in enumerate(BUILDS.items()):
        other, expected = alone(own, turn, len(BUILDS), num_rounds=3, **options)
        assert equal(within(name, state), expected)
        assert other.log.rates.items() <= strategy.log.rates.items()


def test_one_family_is_heterofl():
    options = {"fraction_train": 0.5, "seed": 3}
    strategy, _, state = play({"only": Deep}, num_rounds=3, **options)
    other, expected = alone(Deep, num_rounds=3, **options)
    assert equal(within("only", state), expected)
    assert (strategy.log.rates, strategy.log.train["loss"]) == (other.log.rates, other.log.train["loss"])


def test_a_client_gets_a_slice_of_its_family_under_its_own_names():
    strategy, grid, _ = play()
    start = strategy.federation.initial_state()
    for message in grid.of("train.publish"):
        family = list(BUILDS)[grid.partition_of(message) % 2]
        config = message.content["config"]
        assert config["family"] == family
        member = strategy.federation.members[family]
        expected = member.plan(config["rate"]).extract(within(family, start))
        assert equal(message.content["arrays"].to_torch_state_dict(), expected)
    # Fix, three clients a family on two levels: one large, two small.
    assert strategy.log.rates == {0: 1.0, 1: 1.0, 2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25}
    assert len({id(message.content["arrays"]) for message in grid.of("train.publish")}) == 4


def test_each_family_gets_one_mean_of_each_other():
    builds = {"tiny": build_normed, "deep": Deep, "third": build}
    _, grid, _ = play(builds, nodes=7)
    means = [torch.stack([posterior(partition) for partition in range(turn, 7, 3)]).mean(0) for turn in range(3)]
    sent = grid.of("train.learn")
    for message in sent:
        turn = grid.partition_of(message) % 3
        expected = torch.stack([mean for other, mean in enumerate(means) if other != turn])
        found = message.content[messages.POSTERIORS].to_torch_state_dict()
        assert list(found) == [messages.POSTERIORS]
        torch.testing.assert_close(found[messages.POSTERIORS], expected)
        assert not message.content["arrays"]
    assert len({id(message.content[messages.POSTERIORS]) for message in sent}) == 3


def test_bytes_are_those_of_the_messages():
    strategy, grid, _ = play()

    def size(message, name):
        return sum(len(array.data) for array in message.content[name].values())

    slices = sum(size(message, "arrays") for message in grid.of("train.publish"))
    posteriors = sum(size(message, messages.POSTERIORS) for message in grid.of("train.learn"))
    assert strategy.log.bytes_down == slices + posteriors
    one = len(ArrayRecord({"posteriors": posterior(0)})["posteriors"].data)
    assert strategy.log.bytes_up == slices + NODES * one


def test_who_publishes_no_posteriors_takes_no_part_in_what_follows():
    strategy, grid, state = play(said={3: posterior(3)[1:]})
    assert list(strategy.log.failures) == [3]
    assert "expected torch.float32 of shape (5, 4)" in strategy.log.failures[3]
    assert 3 not in map(grid.partition_of, grid.of("train.learn"))
    (mean,) = grid.of("train.learn")[0].content[messages.POSTERIORS].to_torch_state_dict()[messages.POSTERIORS]
    torch.testing.assert_close(mean, (posterior(1) + posterior(5)) / 2)
    _, _, without = play(odd={3: lambda message: reply(message, build(1.0), num_examples=1)})
    assert equal(state, without)


def test_a_slice_that_does_not_fit_its_family_is_refused():
    def poisoned(message):
        model = Deep(message.content["config"]["rate"])
        nn.init.constant_(model.classifier.bias, math.nan)
        return reply(message, model, num_examples=1)

    def foreign(message):
        return reply(message, build(message.content["config"]["rate"]), num_examples=1)

    strategy, _, state = play(odd={1: poisoned, 3: foreign})
    assert "deep.classifier.bias contains NaN" in strategy.log.failures[1]
    assert "2 names are not in its plan ('hidden.weight', 'hidden.bias')" in strategy.log.failures[3]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_family_nobody_of_which_is_left_stays_as_it_was():
    bad = dict.fromkeys((1, 3, 5), posterior(0)[1:])
    strategy, _, state = play(said=bad, server_momentum=0.5)
    start = strategy.federation.initial_state()
    assert equal(within("deep", state), within("deep", start))
    assert not equal(within("tiny", state), within("tiny", start))
    assert strategy.log.train["heard"] == 0
    with pytest.raises(RoundError, match="0 of 6 clients gave a usable reply"):
        play(said=dict.fromkeys(range(NODES), posterior(0)[1:]))


def test_both_exchanges_are_in_the_record():
    strategy, _, _ = play()
    assert strategy.log.train["loss"] == pytest.approx(sum((1 + one) * one for one in range(6)) / 21)
    assert strategy.log.train["heard"] == 1


def evaluated(builds, mix=MIX, **options):
    return play(builds, mix=mix, evaluation=Evaluation(levels=True), **options)


def test_each_family_is_evaluated_by_its_own_clients_with_its_own_moments():
    builds = {"tiny": build_normed, "deep": Deep}
    strategy, grid, state = evaluated(builds)
    assert sorted(map(grid.partition_of, grid.of("query.moments"))) == [0, 2, 4]
    assert list(strategy.engine.prefix_moments) == ["tiny"]
    for message in grid.of("evaluate"):
        family = list(builds)[grid.partition_of(message) % 2]
        assert equal(message.content["arrays"].to_torch_state_dict(), within(family, state))
        assert (messages.MOMENTS in message.content) == (family == "tiny")
    # The moments of the full model's only batch norm, from all of the family's data at once.
    model = build_normed(1.0)
    model.load_state_dict(within("tiny", state), strict=False)
    batches = [model.hidden(inputs(partition)) for partition in (0, 2, 4)]
    means = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    layer = strategy.engine.prefix_moments["tiny"][1.0].layers["norm"]
    torch.testing.assert_close((layer.first / layer.count).float(), means, rtol=1e-4, atol=1e-5)
    assert all(name.startswith("tiny.") for name in strategy.moment_tensors())


def test_metrics_are_told_by_family_and_for_all():
    strategy, _, _ = evaluated(BUILDS)
    found = strategy.log.evaluate
    # Partition p reports 1 / (1 + p) for 1 + p examples.
    assert found["local-accuracy"] == pytest.approx(6 / 21)
    assert found["tiny/local-accuracy"] == pytest.approx(3 / (1 + 3 + 5))
    assert found["deep/local-accuracy"] == pytest.approx(3 / (2 + 4 + 6))
    assert (found["tiny/worst-accuracy"], found["deep/worst-accuracy"]) == pytest.approx((1 / 5, 1 / 6))
    assert {"output", "tiny/output", "deep/output"} <= strategy.log.evaluate_by_level["c"].keys()


def test_a_run_that_goes_on_equals_one_without_a_break(tmp_path):
    options = {"server_momentum": 0.5, "assignment": "dynamic", "evaluation": Evaluation(), "fraction_train": 0.5}
    whole, _, expected = play(num_rounds=4, **options)
    play(num_rounds=2, callbacks=[Recorder(tmp_path)], **options)
    checkpoint = RunFolder(tmp_path).load_checkpoint()
    assert checkpoint.moments.keys() == whole.moment_tensors().keys()
    again = Hybrid(BUILDS, MIX, classes=CLASSES, seed_size=10, seed_batch=BATCH, **options)
    again.federation.optimizer_state = dict(checkpoint.optimizer)
    with LocalGrid(app_of(), NODES) as grid:
        result = again.start(grid, ArrayRecord(dict(checkpoint.state)), num_rounds=4, first_round=3)
    assert equal(result.arrays.to_torch_state_dict(), expected)
    velocities = [dict(sorted(one.federation.optimizer_state.items())) for one in (again, whole)]
    assert equal(*velocities)
    assert untimed(again) == untimed(whole)


def test_parameters_that_stay_with_clients_are_refused():
    with pytest.raises(ConfigError, match="no parameter can stay with a client"):
        Hybrid(BUILDS, MIX, classes=CLASSES, shared=("hidden.*",))
    with pytest.raises(ConfigError, match="classes is 1, expected 2 or more"):
        Hybrid(BUILDS, MIX, classes=1)
