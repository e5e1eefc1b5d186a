"""Static batch norm moments: collected from the clients, merged, checked, and sent with the evaluation."""

import re

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from heterofl_flwr import Evaluation, Fidelity, HeteroFL, LocalGrid, Windowed
from heterofl_flwr.client import Task
from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.client.queries import answer_moments
from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.nn.moments import LayerMoments, Moments
from heterofl_flwr.transport.arrays import moment_tensors, pack_moments
from tests.federation import tiny
from tests.federation.tiny import Watched, bare_reply, build_normed, config, equal, inputs, judge, make_app, play

KEY = "1.0/paper.norm.first"


def run(number, mix="a1-c1", num_rounds=1, evaluate=judge, moments=None, **options):
    """Return a run of the model with batch norm that evaluates."""
    grid = {name: options.pop(name) for name in ("fidelity", "node_config") if name in options}
    app = make_app(evaluate=evaluate, build=build_normed, moments=moments)
    return play(app, mix, number, num_rounds, build=build_normed, evaluation=Evaluation(**options), **grid)


@pytest.mark.parametrize("moments", ["paper", "fixed"])
def test_merged_moments_are_those_of_all_data_in_one_place(moments):
    found = run(4, "a1-b1-c1", fidelity=Fidelity.of("paper", moments=moments), levels=True)
    assert sorted(found.strategy.moments) == [0.25, 0.5, 1.0]
    for rate, merged in found.strategy.moments.items():
        model = build_normed(rate)
        load_parameters(model, found.architecture.plan(rate).extract(found.state))
        central = collect_moments(model, [inputs(partition) for partition in range(4)], kind=moments)
        for one, two in zip(merged.statistics("norm"), central.statistics("norm"), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_moments_stay_until_the_next_evaluation_and_a_new_run():
    first = play(nodes=2, num_rounds=3, build=build_normed, evaluation=Evaluation(every=2))
    with LocalGrid(make_app(build=build_normed), 2) as grid:
        first.strategy.start(grid, num_rounds=2)
    seen = [progress.moments for progress in first.progress]
    layer = {f"1.0/paper.norm.{part}" for part in ("count", "first", "second")}
    assert [set(moments) for moments in seen] == [set(), layer, layer, set(), layer]
    assert not equal(seen[1], seen[2])  # the last round ends with an evaluation too


def measure(message, context):
    """Answer the query for moments as it should be."""
    return answer_moments(Task(message, context, build_normed), lambda: [inputs(context.node_config["partition-id"])])


def changed(change):
    """Return an answer to the query whose record is changed."""

    def moments(message, context):
        answer = measure(message, context)
        change(answer.content["moments"])
        return answer

    return moments


def put(key, value):
    return changed(lambda record: record.update({key: Array(value) if isinstance(value, torch.Tensor) else value}))


def other_kind(message, context):
    record = pack_moments({1.0: collect_moments(build_normed(1.0), [inputs(0)], "fixed")})
    return bare_reply(message, moments=record, config=config())


COUNT = KEY.replace("first", "count")
BAD = {
    "raises": (tiny.crash, "error 2.*the disk is full"),
    "many batches": (put(COUNT, torch.tensor(10**8)), "norm count 100,000,000 batches, expected up to"),
    "too many": (put("more", torch.ones(8)), "sent 4 arrays of moments, expected 3"),
    "unreadable": (put(KEY, Array("float64", (8,), "numpy.ndarray", b"junk")), "arrays that cannot be read"),
    "other kind": (other_kind, "moments of kind fixed, expected paper"),
    "schema": (lambda message, context: bare_reply(message, config=config(heterofl_schema=0)), "schema 0"),
}


def test_moments_that_cannot_be_used_are_left_out_and_named(caplog):
    """One client for each fault, and two good ones."""
    faults = dict(enumerate(BAD.values()))

    def moments(message, context):
        answer, _ = faults.get(context.node_config["partition-id"], (measure, ""))
        return answer(message, context)

    found = play(
        make_app(build=build_normed, moments=moments), nodes=len(BAD) + 2, build=build_normed, evaluation=Evaluation()
    )
    model = build_normed(1.0)
    load_parameters(model, found.state)
    good = collect_moments(model, [inputs(partition) for partition in (len(BAD), len(BAD) + 1)])
    torch.testing.assert_close(found.strategy.moments[1.0].layers["norm"].first_sum, good.layers["norm"].first_sum)
    assert sorted(found.log.evaluate_failures) == sorted(faults)
    for partition, (_, named) in faults.items():
        assert re.search(named, found.log.evaluate_failures[partition]), named
    assert "round 1: partition 0 gave no usable moments: error 2" in caplog.text
    assert "did not evaluate" not in caplog.text
    assert found.log.evaluate["coverage"] == 1.0
    assert len(found.result.evaluate_metrics_clientapp) == 1


def test_where_nobody_gives_moments_the_run_ends():
    with pytest.raises(RoundError, match=r"none of 2 nodes .*moments.*data=.*static_norm=False.*disk is full"):
        run(2, moments=tiny.crash)


def test_a_round_without_moments_ends_no_run_that_had_some():
    def moments(message, context):
        return (tiny.crash if message.content["config"]["server-round"] == 2 else measure)(message, context)

    app = make_app(build=build_normed, moments=moments)
    found = play(app, "a1", 4, 3, build=build_normed, evaluation=Evaluation(), fraction_evaluate=0.25)
    assert [record.evaluate["coverage"] for record in found.records] == [0.25, 0.0, 0.25]
    assert [record.few_answered for record in found.records] == [False, True, False]


def test_a_rate_that_nobody_gives_moments_of_is_not_evaluated(caplog):
    def moments(message, context):
        return (measure if context.node_config["partition-id"] else tiny.crash)(message, context)

    node_config = {0: {"level": "a"}, 1: {"level": "c"}}.__getitem__
    found = run(2, moments=moments, node_config=node_config, nodes="capable", levels=True)
    sent = found.grid.of("evaluate")
    asked = {found.grid.partition_of(message): list(message.content["config"]["rates"]) for message in sent}
    assert asked == {0: [0.25], 1: [0.25]}
    assert [message.content["arrays"]["hidden.bias"].shape for message in sent] == [(2,), (2,)]
    assert "only rates [0.25] are evaluated" in caplog.text
    assert list(found.log.evaluate_by_level) == ["c"]


def test_data_that_shuffles_gives_equal_moments_in_equal_runs():
    def moments(message, context):
        data = inputs(context.node_config["partition-id"])
        return answer_moments(
            Task(message, context, build_normed, seed_torch=True), lambda: data[torch.randperm(len(data))].split(3)
        )

    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # another state of torch's generator, as in another process
        found.append(moment_tensors(run(3, moments=moments, levels=True).strategy.moments))
    assert equal(*found)


class Remote(Watched):
    """A grid that looks like the one of a SuperLink."""

    _runtime_client = None


@pytest.mark.parametrize(("grid", "mean"), [(Remote, 1.2), (Watched, 11)])
def test_moments_from_behind_a_superlink_are_merged_robustly(grid, mean):
    def moments(message, context):
        value = [1.0, 1.1, 30.9][context.node_config["partition-id"]]
        layer = LayerMoments(1, torch.full((8,), value).double(), torch.ones(8).double())
        return bare_reply(message, moments=pack_moments({1.0: Moments("paper", {"norm": layer})}), config=config())

    strategy = HeteroFL(build_normed, "a1")
    with grid(make_app(moments=moments, build=build_normed), 3) as clients:
        arrays = ArrayRecord(strategy.federation.architecture.initial_state())
        strategy.configure_evaluate(1, arrays, ConfigRecord(), Windowed(clients, 3))
    assert strategy.moments[1.0].statistics("norm")[0].tolist() == pytest.approx([mean] * 8, abs=0.04)
