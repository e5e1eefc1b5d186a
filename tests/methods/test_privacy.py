"""Clients are clipped, the model is noised, and the record says what that gives away."""

import math

import pytest
import torch

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Privacy, RoundCallback, messages
from heterofl_flwr.core.accountant import divergences, epsilon
from heterofl_flwr.core.compress import Changes, restore
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.reply import norm_between
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.methods.fedh2l import FedH2L
from heterofl_flwr.methods.privacy import Spent, clip_moments, noise_moments
from heterofl_flwr.nn.moments import LayerMoments, Moments
from tests.methods.tiny import add_one, build, build_normed, equal, make_app

NEVER = Evaluation(every=0)


def run(privacy, build=build, num_rounds=1, nodes=3, train=add_one, **options):
    records = []

    class Keep(RoundCallback):
        def on_round_end(self, progress):
            records.append(progress.record)
            return False

    with LocalGrid(make_app(train, build=build), nodes) as grid:
        strategy = HeteroFL(
            build, **{"mix": "a1", "evaluation": NEVER, "callbacks": [Keep()], **options}, privacy=privacy
        )
        state = strategy.start(grid, num_rounds=num_rounds).arrays.to_torch_state_dict()
    return strategy, state, records


def test_each_change_is_shortened_before_it_counts():
    strategy, state, _ = run(Privacy(clip=0.5))
    before = strategy.federation.initial_state()
    # All three move each of 68 entries alike, so the mean is as long as each.
    length = math.sqrt(sum(((state[name] - own) ** 2).sum().item() for name, own in before.items()))
    assert length == pytest.approx(0.5, rel=1e-4)
    assert strategy.log.privacy == {}


@pytest.mark.parametrize(("upload", "rounding"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_a_client_shortens_its_change_before_it_sends_it(upload, rounding):
    lengths = []

    def train(message, context):
        answer = add_one(message, context)
        plan = Plan.of(build(1.0), build(message.content["config"]["rate"]))
        sub = messages.unpack_trained(messages.arrays_in(answer.content), upload, plan, "it")
        before = messages.tensors_of(message.content["arrays"], "it")
        if isinstance(sub, Changes):
            sub = restore(Plan.of(build(1.0), build(1.0)), before, sub)
        lengths.append(norm_between(sub, before))
        return answer

    _, clipped_twice, _ = run(Privacy(clip=0.5), train=train, upload=upload)
    assert lengths == [pytest.approx(0.5, rel=rounding + 1e-5)] * 3
    assert max(lengths) <= 0.5 * (1 + rounding)
    if upload == "float32":  # what the server alone shortens has the same bits
        assert equal(run(Privacy(clip=0.5), train=deaf)[1], clipped_twice)


def deaf(message, context):
    """Train without having heard of a bound."""
    del message.content["config"]["clip"]
    return add_one(message, context)


def test_nobody_is_told_of_a_bound_where_there_is_none():
    def train(message, context):
        assert "clip" not in message.content["config"]
        return add_one(message, context)

    assert run(None, train=train)[0].log.failures == {}


@pytest.mark.parametrize("value", ["much", -1.0, math.inf, math.nan])
def test_a_bound_that_means_nothing_is_refused_by_the_client(value):
    with pytest.raises(ReplyError, match="as clip, expected a number of 0 or more"):
        messages.clip_of({"clip": value}, "the server")


def test_noise_differs_from_run_to_run_and_leaves_alone_what_nobody_held():
    before = HeteroFL(build, "a1-c1").federation.initial_state()
    options = {"mix": "a1-c1", "fraction_train": 0.5, "nodes": 2}
    states = [run(Privacy(clip=1, noise=1), **options)[1] for _ in range(2)]
    strategy, plain, _ = run(None, **options)
    assert not equal(*states)
    (rate,) = strategy.log.rates.values()
    for name, own in strategy.federation.plan(rate).axes.items():
        held = torch.zeros_like(before[name], dtype=torch.bool)
        held[tuple(slice(axis.kept) for axis in own)] = True
        assert ((states[0][name] != before[name]) == held).all()
    del plain


def test_the_record_says_what_was_given_away_so_far():
    strategy, _, records = run(Privacy(clip=1, noise=2, delta=1e-3), num_rounds=3, fraction_train=0.4)
    for number, record in enumerate(records, 1):
        assert record.privacy["training-releases"] == number
        assert record.privacy["epsilon"] == epsilon([number * own for own in divergences(2, 1.0)], 1e-3)
        assert record.privacy["epsilon-sampled"] == epsilon([number * own for own in divergences(2, 0.4)], 1e-3)
    again = Spent(strategy.federation.privacy, 0.4, 1.0)
    again.resume(records[-1].privacy)
    assert again.facts() == records[-1].privacy


def test_moments_are_clipped_noised_and_counted():
    strategy, _, (record,) = run(
        Privacy(clip=1, noise=0.1), build_normed, mix="a1-c1", evaluation=Evaluation(levels=True)
    )
    assert record.privacy["moments-releases"] == 2  # one for each rate
    assert {moments.layers["norm"].count for moments in strategy.moments.values()} == {3}
    mean, variance = strategy.moments[1.0].statistics("norm")
    assert mean.isfinite().all()
    assert (variance > 0).all()


def test_a_clients_moments_count_once_and_no_further_than_the_bound():
    layer = LayerMoments(4, torch.full((3,), 12.0).double(), torch.full((3,), 16.0).double())
    (short,) = clip_moments(Moments("paper", {"norm": layer}), 100.0).layers.values()
    assert (short.count, short.first.tolist(), short.second.tolist()) == (1, [3.0] * 3, [4.0] * 3)
    (short,) = clip_moments(Moments("paper", {"norm": layer}), 1.0).layers.values()
    assert math.hypot(short.first.norm(), short.second.norm()) == pytest.approx(1)
    nothing = Moments("paper", {"norm": LayerMoments(0, torch.zeros(3), torch.zeros(3))})
    assert clip_moments(nothing, 1.0).layers["norm"].count == 0


def test_noise_on_moments_is_that_of_their_bound():
    layer = LayerMoments(5, torch.zeros(4000).double(), torch.full((4000,), 1e6).double())
    found = noise_moments({1.0: Moments("paper", {"norm": layer})}, Privacy(clip=1, noise=0.5, moments_clip=8))
    first, second = found[1.0].layers["norm"].first, found[1.0].layers["norm"].second
    assert first.std().item() == pytest.approx(4, rel=0.05)
    assert (second - 1e6).std().item() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    "values", [{"clip": -1}, {"noise": 1.0}, {"clip": 1, "noise": math.nan}, {"delta": 0}, {"moments_clip": 0}]
)
def test_values_that_mean_nothing_are_refused(values):
    with pytest.raises(ConfigError, match="privacy: "):
        Privacy(**values)


def test_what_noise_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="expected weights='equal'"):
        HeteroFL(build, weights="examples", privacy=Privacy(clip=1, noise=1))
    with pytest.raises(ConfigError, match="FedH2L exchanges posteriors"):
        FedH2L(3, seed_size=10, seed_batch=5, privacy=Privacy(clip=1))
