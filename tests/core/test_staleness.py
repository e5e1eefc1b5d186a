"""Asynchronous aggregation against a slow twin, entry by entry, and the properties that it promises."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core import Aggregation, Axis, Plan
from heterofl_flwr.core.staleness import Clocks, StaleMean
from tests.core import twin
from tests.core.twin import random_state

SHAPES = {"body": (6, 4), "linear.weight": (3, 6), "linear.bias": (3,)}
ROWS = ["linear.weight", "linear.bias"]
SIZES = {1.0: (6, 4), 0.5: (4, 4), 0.25: (2, 2)}


def plan_of(rate, *, parts=1):
    out, into = SIZES[rate]
    body = (Axis(6, out, parts if out < 6 else 1), Axis(4, into))
    return Plan({"body": body, "linear.weight": (Axis(3, 3), Axis(6, out)), "linear.bias": (Axis(3, 3),)})


REPLIES = st.tuples(
    st.sampled_from(sorted(SIZES)),
    st.integers(0, 9),  # how many steps before this one its slice was sent
    st.one_of(st.none(), st.lists(st.integers(0, 2), max_size=3)),
    st.sampled_from([1.0, 1.0, 0.5, 7]),
)
STEPS = st.lists(st.lists(REPLIES, max_size=4), min_size=1, max_size=5)


def stale_mean(state, clocks, **options):
    return Aggregation(state, ROWS, aggregator=partial(StaleMean, clocks=clocks, **options))


def sent_now(clocks, state, parts):
    """Return what a client of each rate is sent now."""
    plans = {rate: plan_of(rate, parts=parts) for rate in SIZES}
    return {rate: clocks.snapshot(0, plan, plan.extract(state)) for rate, plan in plans.items()}


def run(steps, *, parts=1, **options):
    """Return the models after each step, what each reply was, the clocks, and what they were after each step."""
    clocks, models, told = Clocks(), [random_state(SHAPES)], []
    versions = [sent_now(clocks, models[0], parts)]
    for number, replies in enumerate(steps):
        mean, own = stale_mean(models[-1], clocks, **options), []
        for place, (rate, age, labels, weight) in enumerate(replies):
            plan, sent = plan_of(rate, parts=parts), max(number - age, 0)
            sub = random_state(plan.shapes, 100 * number + place)
            mean.add(plan, sub, labels=labels, weight=weight, sent=versions[sent][rate])
            own.append((plan, sub, labels, weight, sent))
        told.append(own)
        models.append(mean.result())
        versions.append(sent_now(clocks, models[-1], parts))
    return models, told, clocks, versions


def spread(clocks, name, plan, sent):
    """Return the staleness of each entry of a slice."""
    axes = plan.axes[name]
    found = torch.full([axis.size for axis in axes], torch.nan, dtype=torch.float64)
    for part, steps in clocks.staleness(plan, sent).items():
        for _, entry in twin.entries(twin.held(part.axes[name])):
            found[entry] = steps
    return twin.cut(found, twin.held(axes))


def slow_run(told, **options):
    """Return the same models, with a clock for each single entry, and all clocks."""
    models = [{name: own.double().numpy() for name, own in random_state(SHAPES).items()}]
    clocks = [{name: np.zeros(shape) for name, shape in SHAPES.items()}]

    def change(sub, labels, sent, name, local, entry):
        counts = labels is None or name not in ROWS or entry[0] in labels
        return sub[name][local].item() - models[sent][name][entry] if counts else None

    for replies in told:
        made = [(plan, sent, weight, partial(change, sub, labels, sent)) for plan, sub, labels, weight, sent in replies]
        twin.stale_step(made, models, clocks, **{"exponent": 0.0, "one_clock": False, **options})
    return models, clocks


OPTIONS = st.fixed_dictionaries({"exponent": st.sampled_from([0.0, 0.5, 1.0]), "one_clock": st.booleans()})


@given(steps=STEPS, options=OPTIONS, parts=st.sampled_from([1, 2]))
def test_models_are_the_slow_twins(steps, options, parts):
    models, told, *_ = run(steps, parts=parts, **options)
    for found, expected in zip(models, slow_run(told, **options)[0], strict=True):
        for name, own in found.items():
            np.testing.assert_allclose(own.numpy(), expected[name], atol=2e-5, err_msg=name)


@given(steps=STEPS, rate=st.sampled_from(sorted(SIZES)), sent=st.integers(0, 9))
def test_clocks_are_the_slow_twins(steps, rate, sent):
    _, told, clocks, versions = run(steps)
    ticks, plan, sent = slow_run(told)[1], plan_of(rate), min(sent, len(steps))
    least = []
    for name, axes in plan.axes.items():
        expected = twin.cut(torch.from_numpy(ticks[-1][name] - ticks[sent][name]), twin.held(axes))
        assert torch.equal(spread(clocks, name, plan, versions[sent][rate]), expected)
        least.append(expected.min().item())
    assert clocks.staleness(plan, versions[sent][rate])[plan] == min(least)


@given(replies=st.lists(REPLIES, min_size=1, max_size=5), exponent=st.sampled_from([0.0, 0.5]))
def test_without_staleness_it_is_the_counting_mean(replies, exponent):
    state = random_state(SHAPES)
    mean, expected = stale_mean(state, Clocks(), exponent=exponent), Aggregation(state, ROWS)
    for place, (rate, _, labels, weight) in enumerate(replies):
        sub = random_state(plan_of(rate).shapes, place + 1)
        mean.add(plan_of(rate), sub, labels=labels, weight=weight)
        expected.add(plan_of(rate), sub, labels=labels, weight=weight)
    assert all(torch.equal(mean.holders(name), expected.holders(name)) for name in state)
    found, wanted = mean.result(), expected.result()
    assert all(torch.equal(found[name], wanted[name]) for name in state)


def test_a_version_is_a_model_of_zeros_but_for_its_slice():
    plan, own = Plan.between({"w": (3, 2)}, {"w": (2, 1)}), torch.tensor([[1.0], [2.0]])
    state = Clocks().snapshot(0, plan, {"w": own}).state
    assert {name: value.tolist() for name, value in state.items()} == {"w": [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]}


def test_the_bound_on_changes_is_about_what_was_sent():
    present, sent = random_state(SHAPES), random_state(SHAPES, 1)
    clocks = Clocks()
    version = clocks.snapshot(0, plan_of(1.0), sent)
    clocks.step([plan_of(1.0)])
    mean = Aggregation(present, ROWS, aggregator=partial(StaleMean, clocks=clocks), norm_bound=0.1)
    with pytest.raises(ReplyError, match="its change has an L2 norm"):
        mean.add(plan_of(1.0), present, sent=version)
    mean.add(plan_of(1.0), sent, sent=version)
    assert mean.replies == 1


def test_slices_of_which_none_is_inside_the_other_are_refused():
    tall, wide = Plan({"body": (Axis(6, 6), Axis(4, 2))}), Plan({"body": (Axis(6, 3), Axis(4, 4))})
    clocks = Clocks()
    clocks.step([tall])
    for steps, own in ((Clocks(), [tall, wide]), (clocks, [wide])):  # in one step, or one after the other
        with pytest.raises(ConfigError, match="two levels train different parts"):
            steps.step(own)


def test_a_reply_of_weight_0_makes_no_other_reply_stale():
    state, clocks = {"w": torch.zeros(4)}, Clocks()
    small, large = (Plan({"w": (Axis(4, size),)}) for size in (2, 4))
    sent = clocks.snapshot(0, large, large.extract(state))
    mean = Aggregation(state, aggregator=partial(StaleMean, clocks=clocks))
    mean.add(small, {"w": torch.ones(2)})
    mean.add(large, {"w": torch.ones(4)}, weight=0)
    assert mean.result()["w"].tolist() == [1, 1, 0, 0]
    assert clocks.staleness(large, sent) == {large: 0, small: 1}
