"""Clients are clipped, the model is noised, and the record says what that gives away."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr import Evaluation, Fidelity, HeteroFL, LocalGrid, Plan, Privacy
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.named_tensors import norm_between
from heterofl_flwr.core.gaussian_noise import DEVIATION
from heterofl_flwr.federation.start_summary import count_releases
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.nn.moments import LayerMoments, Moments
from heterofl_flwr.report import Recorder, RunFolder
from heterofl_flwr.stages.compress import restore
from heterofl_flwr.stages.privacy_accountant import Releases, Spent, clip_moments, divergences, epsilon, noise_moments
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import pack_moments, read_tensors
from tests.federation import tiny
from tests.federation.tiny import add_one, build, build_normed, config, make_app, play


def run(privacy, build=build, num_rounds=1, nodes=3, train=add_one, **options):
    app = make_app(train, build=build)
    found = play(app, nodes=nodes, num_rounds=num_rounds, build=build, privacy=privacy, **options)
    return found.strategy, found.state, found.records


@pytest.mark.parametrize(("upload", "rounding"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_a_client_shortens_its_change_before_it_sends_it(upload, rounding):
    lengths = []

    def train(message, context):
        answer = add_one(message, context)
        plan = Plan.of(build(1.0), build(message.content["config"]["rate"]))
        sub, scales = reading.unpack_trained(reading.array_records(answer.content), upload, plan, "it")
        before = read_tensors(message.content["arrays"], "it")
        if upload != "float32":
            sub = restore(Plan.of(build(1.0), build(1.0)), before, sub, scales)
        lengths.append(norm_between(sub, before))
        return answer

    _, clipped_twice, _ = run(Privacy(clip=0.5), train=train, upload=upload)
    assert lengths == [pytest.approx(0.5, rel=rounding + 1e-5)] * 3
    assert max(lengths) <= 0.5 * (1 + rounding)
    if upload == "float32":  # what the server alone shortens has the same bits
        assert tiny.equal(run(Privacy(clip=0.5), train=deaf)[1], clipped_twice)


def deaf(message, context):
    """Train without having heard of a bound."""
    del message.content["config"]["client-stages"]
    return add_one(message, context)


def test_noise_differs_and_is_only_on_what_somebody_held():
    before = HeteroFL(build, "a1-c1").federation.architecture.initial_state()
    options = {"mix": "a1-c1", "fraction_train": 0.5, "nodes": 2}
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(run(Privacy(clip=1, noise=1), **options)[1])
    strategy, _, _ = run(Privacy(), **options)
    assert not tiny.equal(*states)
    (rate,) = strategy.log.rates.values()
    for name, own in strategy.federation.architecture.plan(rate).axes.items():
        held = torch.zeros_like(before[name], dtype=torch.bool)
        held[tuple(slice(axis.local_size) for axis in own)] = True
        assert ((states[0][name] != before[name]) == held).all()


@pytest.mark.parametrize("slice_rule", ["prefix", "random-client"])
def test_noise_is_on_the_sum_of_shortened_changes(slice_rule):
    """With next to no noise, what is left is the mean of the shortened changes, whether clients shorten them or not."""
    options = {"mix": "a1-b1-c1", "slice_rule": slice_rule}
    _, plain, _ = run(Privacy(clip=0.5), **options)
    _, noisy, _ = run(Privacy(clip=0.5, noise=1e-6), train=deaf, **options)
    for name, own in plain.items():
        torch.testing.assert_close(noisy[name], own, rtol=0, atol=5e-6)


def test_the_record_says_what_was_given_away_so_far():
    strategy, _, records = run(Privacy(clip=1, noise=2, delta=1e-3), num_rounds=3, fraction_train=0.4)
    for number, record in enumerate(records, 1):
        releases = {"training-releases": number, "moments-releases": 0}
        assert record.stages == {"epsilon": epsilon(divergences(2, number), 1e-3), "delta": 1e-3, **releases}
    assert strategy.spent.metrics() == records[-1].stages


class Kept:
    """A ledger in memory; it fails at a kind of release, as a full disk would."""

    def __init__(self, full_at=None, known=()):
        self.known, self._full_at = list(known), full_at

    def releases(self):
        return self.known

    def write_releases(self, releases):
        if any(entry.kind == self._full_at for entry in releases):
            raise HeteroFLError("disk full")
        self.known = list(releases)


@pytest.mark.parametrize(
    ("full_at", "sent"), [("training-releases", {"train"}), ("moments-releases", {"train", messages.QUERY_MOMENTS})]
)
def test_a_release_is_counted_on_disk_before_anybody_gets_it(full_at, sent):
    """What a run gave away right before it died counted for nothing: five models were sent, and two accounted for."""
    with tiny.Watched(make_app(build=build_normed), 3) as grid:
        strategy = HeteroFL(build_normed, "a1", privacy=Privacy(clip=1, noise=1))
        strategy.spent.keep_in(Kept(full_at))
        with pytest.raises(HeteroFLError, match="disk full"):
            strategy.start(grid, num_rounds=1)
    assert {message.metadata.message_type for message in grid.sent} - {messages.QUERY_CAPABILITY} == sent


def test_releases_add_up_over_runs():
    spent = Spent(Privacy(clip=1, noise=1))
    ledger = Kept(known=[Releases("training-releases", 1.0, 1.0, 3, "before")])
    spent.keep_in(ledger)
    spent.add("training-releases")
    spent.add("moments-releases", 2)
    assert spent.metrics() == {**spent.metrics(), "training-releases": 4, "moments-releases": 2}
    assert spent.epsilon() == epsilon(divergences(1, 6), 1e-5)
    spent.keep_in(ledger)  # as a strategy does that starts again in this process
    assert spent.releases == tuple(ledger.known)
    again = Spent(Privacy(clip=1, noise=1))
    again.keep_in(ledger)
    assert again.metrics() == spent.metrics()


@given(st.lists(st.tuples(st.floats(0.3, 20), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 5))
def test_epsilon_adds_up_releases_of_different_noise(entries, more):
    """A script that changed the noise was told 2.12, and 30.2 was true: the ledger had counts without noise."""
    spent = Spent(Privacy(clip=1, noise=4))
    for number, (noise, releases) in enumerate(entries):
        spent.merge([Releases("training-releases", noise, 1.0, releases, str(number))] * 2)
    # k releases of noise s are one of noise s / sqrt(k).
    precision = math.fsum([number / noise**2 for noise, number in entries] + [more / 16])
    assert spent.epsilon(more) == pytest.approx(epsilon(divergences(precision**-0.5, 1), 1e-5))


def test_a_second_strategy_counts_the_releases_of_the_model_that_it_starts_from(tmp_path, caplog):
    """7.08 was said of the second one alone, and 10.73 of both was true."""
    noisy, quiet = Privacy(clip=1, noise=1), Privacy(clip=1, noise=2)
    with LocalGrid(make_app(), 2) as grid:
        HeteroFL(build, "a1", privacy=noisy, callbacks=[Recorder(tmp_path)]).start(grid, num_rounds=2)
        checkpoint = RunFolder(tmp_path).load_checkpoint()
        second = HeteroFL(build, "a1", privacy=quiet)
        second.start(grid, num_rounds=3, resume=checkpoint)
        second.start(grid, num_rounds=3, resume=checkpoint)  # counts the first model's releases once
        expected = epsilon([sum(both) for both in zip(divergences(1, 2), divergences(2, 2), strict=True)], 1e-5)
        assert second.log.stages["epsilon"] == second.spent.epsilon() == pytest.approx(expected)
        assert second.progress(checkpoint.state).releases == second.spent.releases
        plain = HeteroFL(build, "a1")
        plain.start(grid, num_rounds=3, resume=checkpoint)
        assert plain.progress(checkpoint.state).releases == checkpoint.releases
        assert "resume has no releases" not in caplog.text
        HeteroFL(build, "a1", privacy=quiet).start(grid, num_rounds=3, resume=replace(checkpoint, releases=()))
    assert "resume has no releases" in caplog.text


def test_a_clients_moments_count_once_and_within_the_bound():
    layer = LayerMoments(4, torch.full((3,), 12.0).double(), torch.full((3,), 16.0).double())
    exact = Privacy(clip=1, noise=DEVIATION / 800, moments_clip=100.0)  # steps of an eighth
    (short,) = clip_moments(Moments("paper", {"norm": layer}), exact).layers.values()
    assert (short.count, short.first_sum.tolist(), short.second_sum.tolist()) == (1, [24.0] * 3, [32.0] * 3)
    near = Privacy(clip=1, noise=1, moments_clip=1.0)
    (short,) = clip_moments(Moments("paper", {"norm": layer}), near).layers.values()
    length = math.hypot(short.first_sum.norm(), short.second_sum.norm()) * near.moments_step
    assert length == pytest.approx(1, rel=1e-5)
    assert length <= 1
    nothing = Moments("paper", {"norm": LayerMoments(0, torch.zeros(3), torch.zeros(3))})
    assert clip_moments(nothing, near).layers["norm"].count == 0


def test_noise_on_moments_is_that_of_their_bound():
    privacy = Privacy(clip=1, noise=0.5, moments_clip=8)
    size = 40_000
    far = torch.full((size,), round(1e6 / privacy.moments_step)).double()
    layer = LayerMoments(5, torch.zeros(size).double(), far)
    merged = {1.0: Moments("paper", {"norm": layer})}
    found, again = (noise_moments(merged, privacy)[1.0].layers["norm"] for _ in range(2))
    for draws in (found.first_sum, found.second_sum - far * privacy.moments_step):
        assert draws.std().item() == pytest.approx(4, rel=0.02)
        assert (draws.abs() > 8).double().mean().item() == pytest.approx(0.0455, abs=0.006)
    assert not (found.first_sum == again.first_sum).all()


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("moments", ["paper", "fixed"])
def test_noisy_statistics_are_those_of_shortened_moments(moments, nodes):
    """Pooled moments of a single client had a count of 1, and so an infinite variance."""
    found = []

    def answer(message, context):
        own = collect_moments(build_normed(1.0), [tiny.inputs(context.node_config["partition-id"])], moments).layers[
            "norm"
        ]
        found.append((own.first_sum / own.count, own.second_sum / own.count))
        record = pack_moments({1.0: Moments(moments, {"norm": own})})
        return tiny.bare_reply(message, moments=record, config=config())

    app, fidelity = make_app(build=build_normed, moments=answer), Fidelity.of("paper", moments=moments)
    options = {"privacy": Privacy(clip=1, noise=1e-6, moments_clip=100), "min_available_nodes": 1}
    options |= {"fidelity": fidelity, "evaluation": Evaluation()}
    strategy = play(app, nodes=nodes, build=build_normed, **options).strategy
    mean, second = (torch.stack(own).mean(0) for own in zip(*found, strict=True))
    variance = second if moments == "paper" else second - mean**2
    for one, two in zip(strategy.moments[1.0].statistics("norm"), (mean, variance), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-3)


@pytest.mark.parametrize("field", ["clip", "noise", "moments_clip"])
@pytest.mark.parametrize("value", [1e-320, 1e-9, 1e9, 1e308, math.inf, math.nan])
def test_numbers_that_the_grid_cannot_hold_are_refused(field, value):
    with pytest.raises(ConfigError, match=re.escape(f"{field} is {value!r}, expected ")):
        Privacy(**{"clip": 1.0, "noise": 1.0, field: value})


@pytest.mark.parametrize("value", [1e-8, 1e8])
def test_numbers_at_the_bounds_give_a_finite_epsilon(value):
    strategy, state, _ = run(Privacy(clip=value, noise=value, moments_clip=value))
    assert 0 <= strategy.log.stages["epsilon"] < math.inf
    assert all(own.isfinite().all() for own in state.values())


@pytest.mark.parametrize(("labels", "times"), [("sent", 1), ("none", 0)])
def test_label_sets_that_epsilon_does_not_cover_are_named(caplog, labels, times):
    run(Privacy(clip=1, noise=1), labels=labels)
    assert caplog.text.count("epsilon does not cover which classes a client has") == times


@pytest.mark.parametrize(("delta", "times"), [(0.5, 1), (1e-5, 0)])
def test_a_delta_that_promises_nothing_is_warned_of(caplog, delta, times):
    run(Privacy(clip=1, noise=1, delta=delta), labels="none", num_rounds=2)
    assert caplog.text.count(f"delta is {delta:g} with 3 clients") == times


@pytest.mark.parametrize(
    ("options", "simulated", "evaluations"),
    [
        ({}, True, 1 + 1 + 1),  # of rounds 2, 4 and 5, each of the global model
        ({}, False, 3 * 3),  # nodes may say what they hold, so each may be of all levels
        ({"nodes": "all"}, False, 1 + 1 + 1),
        ({"levels": "last"}, True, 1 + 1 + 3),
        ({"static_norm": False}, False, 0),
    ],
)
def test_the_releases_of_rounds_to_come_are_counted(options, simulated, evaluations):
    strategy = HeteroFL(build_normed, "a1-b1-c1", evaluation=Evaluation(every=2, **options))
    assert count_releases(strategy.federation, range(1, 6), simulated=simulated) == 5 + evaluations
    plain = HeteroFL(build, "a1-b1-c1", evaluation=Evaluation(every=2, **options)).federation
    assert count_releases(plain, range(1, 6), simulated=simulated) == 5
