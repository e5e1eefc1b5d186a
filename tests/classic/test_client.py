"""What a ``NumPyClient`` calls, and static batch norm moments in the classic API."""

import numpy as np
import pytest
import torch
from flwr.common import Code, Context, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

from heterofl_flwr import Evaluation
from heterofl_flwr.classic import (
    HeteroFL,
    answer_moments,
    asks_for_moments,
    labels_text,
    models_to_evaluate,
    parameters_of,
    properties_of,
    submodel,
)
from heterofl_flwr.classic.arrays import moments_from_arrays, moments_to_arrays
from heterofl_flwr.core import Plan
from heterofl_flwr.errors import ReplyError, RoundError
from heterofl_flwr.local_model import load_parameters
from heterofl_flwr.nn.static_norm import collect_moments
from tests.classic.fakes import OK, Fake, evaluate_all, fit_all, manager_of
from tests.federation.tiny import build, build_normed, equal, inputs

RATES = (1.0, 0.5, 0.25)


def config(rate=1.0, task="train", **values):
    told = {"heterofl-schema": 1, "rate": rate, "seed": 0, "server-round": 1, "partition": 0, "task": task}
    return told | {key.replace("_", "-"): value for key, value in values.items()}


def context(**node_config):
    return Context(1, 7, {key.replace("_", "-"): value for key, value in node_config.items()}, None, {})


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.3])
def test_a_submodel_has_the_parameters_that_came_and_gives_them_back(rate):
    arrays = parameters_of(build_normed(rate))
    model = submodel(arrays, config(rate), build_normed)
    assert model.training
    assert [array.tolist() for array in parameters_of(model)] == [array.tolist() for array in arrays]
    assert len(arrays) == len(list(model.parameters()))  # no running statistics among them


@pytest.mark.parametrize(
    ("arrays", "told", "named"),
    [
        (parameters_of(build(1.0))[:3], config(), "the server sent 3 arrays, expected 4"),
        (parameters_of(build(0.5)), config(), r"hidden.bias: \(4,\), expected \(8,\)"),
        (parameters_of(build(1.0)), {"lr": 0.1}, "the server's strategy is not HeteroFL: .*classic.HeteroFL"),
        (parameters_of(build(1.0)), {"heterofl-schema": 1, "rate": 1.0}, "without seed, server-round, partition"),
        (parameters_of(build(1.0)), config(heterofl_schema=2), "schema 2, expected 1"),
        ([np.array(["a"])] * 4, config(), "arrays that cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arrays, told, named):
    with pytest.raises(ReplyError, match=named):
        submodel(arrays, told, build)


def test_labels_are_distinct_and_ascending():
    assert labels_text(torch.tensor([3, 1, 3])) == "1,3"
    assert labels_text([]) == ""


def test_properties_are_those_of_the_node_config():
    said = properties_of(context(level="b", partition_id=3, num_partitions=9))
    assert said == {"capacity": 0.5, "partition": 3, "num-partitions": 9}
    assert properties_of(context(), moments=True) == {"moments": True}


def test_models_to_evaluate_are_cut_from_what_came():
    arrays = parameters_of(build(1.0))
    state = dict(zip([name for name, _ in build(1.0).named_parameters()], map(torch.as_tensor, arrays), strict=True))
    found = dict(models_to_evaluate(arrays, config(task="evaluate", rates="1.0,0.5,0.25"), build))
    assert tuple(found) == RATES
    for rate, model in found.items():
        assert not model.training
        expected = Plan.of(build(1.0), build(rate)).extract(state)
        assert equal({name: parameter.detach() for name, parameter in model.named_parameters()}, expected)


@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_moments_there_and_back(kind):
    moments = {rate: collect_moments(build_normed(rate), [inputs(0)], kind) for rate in RATES}
    arrays = moments_to_arrays(moments)
    back = moments_from_arrays(arrays, kind, {rate: ["norm"] for rate in RATES}, "it")
    for rate in RATES:
        assert equal(moments[rate].to_tensors(), back[rate].to_tensors())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: arrays[:-1], "2 arrays of moments, expected 3"),
        (lambda arrays: [np.array(np.nan), *arrays[1:]], "cannot be used"),
        (lambda arrays: [np.array([1, 2]), *arrays[1:]], "cannot be used"),
        (lambda arrays: [np.array(-1), *arrays[1:]], "a count of -1"),
        (lambda arrays: [arrays[0], arrays[1] * np.nan, arrays[2]], "not finite"),
        (lambda arrays: [arrays[0], arrays[1][:3], arrays[2]], "two vectors of equal length"),
        (lambda arrays: [arrays[0], arrays[1].astype(str), arrays[2]], "cannot be used"),
        (lambda arrays: [arrays[0], arrays[1].astype(complex), arrays[2]], "sums of moments are complex128"),
    ],
)
def test_moments_that_mean_nothing_are_refused(change, named):
    arrays = moments_to_arrays({1.0: collect_moments(build_normed(1.0), [inputs(0)])})
    with pytest.raises(ReplyError, match=named):
        moments_from_arrays(change(arrays), "paper", {1.0: ["norm"]}, "it")


def test_a_client_answers_for_moments_instead_of_training():
    asked = config(task="moments", moments_kind="paper", rates="1.0,0.5")
    assert asks_for_moments(asked)
    assert not asks_for_moments(config())
    arrays, number, metrics = answer_moments(
        parameters_of(build_normed(1.0)), asked, build_normed, lambda: [(inputs(0), 0), {"x": inputs(1)}]
    )
    assert (len(arrays), number, metrics) == (6, 0, {})


class Normed(Fake):
    """A client of a model with batch norm that answers for its moments, unless it was given another answer."""

    def __init__(self, cid, amount=1.0, *, level=None, **options):
        says = {"partition": int(cid), "moments": True} | ({"capacity": level} if level else {})
        super().__init__(cid, amount, says=says, **options)
        self.moments = self.moments or self._answer

    def _answer(self, ins):
        arrays = parameters_to_ndarrays(ins.parameters)
        found, number, metrics = answer_moments(arrays, ins.config, build_normed, lambda: [inputs(int(self.cid))])
        return FitRes(OK, ndarrays_to_parameters(found), number, metrics)

    def evaluate(self, ins, timeout, group_id):
        arrays = parameters_to_ndarrays(ins.parameters)
        self.seen = dict(models_to_evaluate(arrays, ins.config, build_normed))
        return super().evaluate(ins, timeout, group_id)


def evaluated(fakes, mix="a1-c1", **options):
    strategy = HeteroFL(build_normed, mix, wait=1.0, evaluation=Evaluation(**options))
    manager = manager_of(*fakes)
    parameters, _ = strategy.aggregate_fit(
        1, fit_all(strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)), []
    )
    instructions = strategy.configure_evaluate(1, parameters, manager)
    return strategy, parameters, instructions, strategy.aggregate_evaluate(1, evaluate_all(instructions), [])


def test_clients_evaluate_with_the_moments_of_all_their_data():
    fakes = [Normed(str(cid)) for cid in range(3)]
    strategy, parameters, instructions, _ = evaluated(fakes, levels=True)
    assert [fake.asked for fake in fakes] == [["properties", "train", "moments", "evaluate"]] * 3
    assert len({id(ins.parameters) for _, ins in instructions}) == 1
    state = dict(
        zip(strategy.federation.plan(1.0).axes, map(torch.as_tensor, parameters_to_ndarrays(parameters)), strict=True)
    )
    for rate in (1.0, 0.25):
        model = build_normed(rate)
        load_parameters(model, strategy.federation.plan(rate).extract(state))
        mean, variance = collect_moments(model, [inputs(cid) for cid in range(3)]).statistics("norm")
        for fake in fakes:
            torch.testing.assert_close(fake.seen[rate].norm.running_mean, mean.float())
            torch.testing.assert_close(fake.seen[rate].norm.running_var, variance.float())


def test_clients_that_do_not_promise_moments_are_not_asked():
    fakes = [Fake(str(cid)) for cid in range(2)]
    strategy, _, instructions, (loss, _) = evaluated(fakes)
    assert strategy.moments == {}
    assert [fake.asked for fake in fakes] == [["properties", "train", "evaluate"]] * 2
    assert "moments-kind" not in instructions[0][1].config
    assert loss == 1.0


def test_a_client_that_was_away_may_answer_for_moments_when_it_is_back():
    first, *others = [Normed(str(cid)) for cid in range(3)]
    strategy, says = HeteroFL(build_normed, "a1", wait=1.0), first.says
    parameters = strategy.initialize_parameters(manager_of())
    first.says = RuntimeError("busy")
    strategy.configure_fit(1, parameters, manager_of(first, *others))
    strategy.configure_fit(2, parameters, manager_of(Normed("9"), *others))
    first.says = says
    strategy.configure_evaluate(2, parameters, manager_of(first, *others))
    assert first.asked == ["properties", "properties", "moments"]


def crash(ins):
    raise ValueError("no data")


BAD = {
    "raises": (crash, "no data"),
    "fails": (lambda ins: FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "not here"), ins.parameters, 0, {}), "not here"),
    "trains": (lambda ins: FitRes(OK, ins.parameters, 1, {}), "6 arrays, expected 3"),
    "more batches than examples": (
        lambda ins: FitRes(OK, ndarrays_to_parameters([np.array(2), np.ones(8), np.ones(8)]), 0, {}),
        "norm count 2 batches, expected up to 1",
    ),
    "other width": (
        lambda ins: FitRes(OK, ndarrays_to_parameters([np.array(1), np.ones(3), np.ones(3)]), 0, {}),
        "norm has 3 channels, expected 8",
    ),
}


@pytest.mark.parametrize(("bad", "named"), BAD.values(), ids=BAD)
def test_moments_that_cannot_be_used_are_left_out_and_named(caplog, bad, named):
    fakes = [Normed("0", moments=bad), Normed("1"), Normed("2")]
    strategy, _, _, _ = evaluated(fakes, "a1")
    assert strategy.moments[1.0].layers["norm"].count == 2  # batches, of the two others
    assert named in caplog.text


@pytest.mark.parametrize(
    ("remote", "merge", "mean"), [(True, "auto", 1.2), (False, "auto", 11), (False, "robust", 1.2), (True, "mean", 11)]
)
def test_moments_of_clients_on_other_machines_are_merged_robustly_by_default(remote, merge, mean):
    def said(value):
        arrays = [np.array(1), np.full(8, value), np.ones(8)]
        return lambda ins: FitRes(OK, ndarrays_to_parameters(arrays), 0, {})

    fakes = [Normed(str(cid), moments=said(value)) for cid, value in enumerate([1.0, 1.1, 30.9])]
    if remote:
        fakes[0].bridge = None  # as clients of ``start_server`` have
    strategy, _, _, _ = evaluated(fakes, "a1", moments_merge=merge)
    assert strategy.moments[1.0].statistics("norm")[0].tolist() == pytest.approx([mean] * 8, abs=0.04)


def test_where_all_that_promised_moments_give_none_the_run_ends():
    with pytest.raises(RoundError, match=r"none of 2 nodes gave usable .*asks_for_moments.*no data"):
        evaluated([Normed(str(cid), moments=crash) for cid in range(2)])
