from functools import reduce
from operator import add
from statistics import median

import pytest
import torch
from hypothesis import example, given, strategies as st

from heterofl_flwr.common.errors import ConfigError, DataError, HeteroFLError, ShapeError
from heterofl_flwr.nn import collect_moments, moments as module, robust_moments as robust
from heterofl_flwr.nn.moments import LayerMoments, Moments, MomentsByRate, check_layers, check_possible
from heterofl_flwr.nn.robust_moments import sum_robust


def _moments(kind="fixed", name="bn"):
    first = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Moments(kind, {name: LayerMoments(4, first, first**2 + 4)})


@pytest.mark.parametrize("kind", ["paper", "fixed"])
@pytest.mark.parametrize("name", ["features.norm1", ""])
def test_a_message_carries_them_unchanged(kind, name):
    moments = _moments(kind, name=name)
    tensors = moments.to_tensors()
    restored = Moments.from_tensors(tensors)
    assert restored.kind == kind
    assert restored.layers.keys() == {name}
    assert restored.layers[name].count == 4
    assert torch.equal(restored.layers[name].first_sum, moments.layers[name].first_sum)
    assert torch.equal(restored.layers[name].second_sum, moments.layers[name].second_sum)


BAD_MESSAGES = {
    "empty": (lambda good: {}, DataError, "none at all"),
    "two kinds": (lambda good: good | _moments("paper").to_tensors(), DataError, "one kind, got fixed, paper"),
    "no count": (lambda good: {**good} | {"fixed.x.first": torch.ones(2)}, DataError, "incomplete or unknown"),
    "count": (lambda good: good | {"fixed.bn.count": torch.ones(2)}, ShapeError, r"shape \(2,\), expected one number"),
    "float count": (lambda good: good | {"fixed.bn.count": torch.tensor(2.5)}, ShapeError, "int64"),
    "negative": (lambda good: good | {"fixed.bn.count": torch.tensor(-1)}, DataError, "a count of -1"),
    "unknown kind": (lambda good: {f"new{key[5:]}": own for key, own in good.items()}, ConfigError, "moments is 'new'"),
    "nan": (lambda good: good | {"fixed.bn.first": torch.ones(2) * torch.nan}, DataError, "bn are not finite"),
    "matrices": (lambda good: good | {"fixed.bn.first": torch.ones(2, 2)}, ShapeError, "two vectors of equal length"),
    "integers": (lambda good: good | {"fixed.bn.first": torch.ones(2).int()}, DataError, "are torch.int32"),
}


@pytest.mark.parametrize(("spoil", "error", "reason"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_message_that_holds_no_moments_is_refused(spoil, error, reason):
    with pytest.raises(error, match=reason):
        Moments.from_tensors(spoil(_moments().to_tensors()))


@pytest.mark.parametrize(
    ("channels", "text"), [({"bn": 3}, "bn has 2 channels, expected 3"), ({"x": 2}, "x is missing; bn is unknown")]
)
def test_moments_of_other_models_are_refused(channels, text):
    with pytest.raises(ShapeError, match=text):
        check_layers(_moments(), channels)


IMPOSSIBLE = {
    "sums of nothing": ("paper", 0, 1.0, 1.0),
    "huge": ("paper", 2, 1e100, 1e300),
    "infinite variance in float32": ("paper", 2, 0.0, 1e39),
    "pooled variance below zero": ("fixed", 4, 4.0, 3.9),
    "pooled over a single value": ("fixed", 1, 1.0, 1.0),
}


@pytest.mark.parametrize(("kind", "count", "first", "second"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_moments_of_no_data_are_refused(kind, count, first, second):
    sums = torch.tensor([[first], [second]], dtype=torch.float64)
    for own in {kind, "fixed"}:  # what no batches can have, no values have either
        with pytest.raises(HeteroFLError, match="moments of norm are those of no data"):
            check_possible(Moments(own, {"norm": LayerMoments(count, *sums)}), 10)


@pytest.mark.parametrize(("kind", "most"), [("paper", 10), ("fixed", 10 * 2**23)])
def test_counts_that_no_such_number_of_examples_has_are_refused(kind, most):
    good, bad = (
        Moments(kind, {"norm": LayerMoments(count, torch.zeros(2), torch.ones(2))}) for count in (most, most + 1)
    )
    check_possible(good, 10)
    with pytest.raises(HeteroFLError, match=rf"norm count {most + 1:,} .*expected up to {most:,}.* 10 examples"):
        check_possible(bad, 10)


@pytest.mark.parametrize("kind", ["paper", "fixed"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_measured_moments_are_possible_even_without_any_variance(kind, offset):
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8))
    check_possible(collect_moments(model, [torch.full((number, 3), offset) for number in (6, 7)], kind), 20)


def test_pooled_variances_never_fall_below_zero():
    total = torch.full((1,), 3e8, dtype=torch.float64)
    moments = Moments("fixed", {"bn": LayerMoments(3, total, total**2 / 3 - 64)})
    assert moments.statistics("bn")[1].item() == 0


KINDS = st.sampled_from(["paper", "fixed"])
SAID = st.tuples(
    st.integers(2, 10**6),
    st.floats(-100, 100).map(lambda own: round(own, 6)),
    st.floats(0.1, 100, allow_subnormal=False),
)


def _client(kind, count, mean, variance):
    """Return the moments of one layer of one channel."""
    return Moments(
        kind, {"bn": module.build_layer_moments(kind, count, *torch.tensor([[mean], [variance]], dtype=torch.float64))}
    )


def _near(value, values, close):
    middle = median(values)
    reach = max(robust.SPREAD * median(abs(own - middle) for own in values), close)
    return min(max(value, middle - reach), middle + reach)


def _slow_robust(kind, said):
    """Return the statistics of clients, one number at a time."""
    counts, means, variances = zip(*said, strict=True)
    usual = median(variances)
    near = [
        (
            min(count, int(robust.WEIGHT * median(counts))),
            _near(mean, means, robust.CLOSE * usual**0.5),
            _near(variance, variances, robust.CLOSE * usual),
        )
        for count, mean, variance in said
    ]
    if len(said) < 3:
        near = said
    total = sum(count for count, _, _ in near)
    first = sum(count * mean for count, mean, _ in near)
    if kind == "paper":
        return first / total, sum(count * variance for count, _, variance in near) / total
    second = sum((count - 1) * variance + count * mean**2 for count, mean, variance in near)
    return first / total, max((second - first**2 / total) / (total - 1), 0)


@given(kind=KINDS, said=st.lists(SAID, min_size=1, max_size=7))
def test_the_robust_sum_is_that_of_its_slow_twin(kind, said):
    found = sum_robust([_client(kind, *own) for own in said]).statistics("bn")
    torch.testing.assert_close(torch.cat(found), torch.tensor(_slow_robust(kind, said)).double(), rtol=1e-6, atol=1e-6)


@given(
    kind=KINDS,
    said=st.lists(st.tuples(st.integers(50, 100), st.floats(-0.11, 0.11), st.floats(0.9, 1.1)), min_size=1, max_size=9),
)
@example(kind="fixed", said=[(1, 3.0, 0.0), (1, 30.0, 0.0)])  # of two, nobody knows whom to believe
def test_clients_that_agree_are_joined_bit_for_bit_as_plainly(kind, said):
    clients = [_client(kind, *own) for own in said]
    one, two = sum_robust(clients).layers["bn"], reduce(add, clients).layers["bn"]
    assert (one.count, one.first_sum, one.second_sum) == (two.count, two.first_sum, two.second_sum)


@given(
    kind=KINDS,
    honest=st.lists(SAID, min_size=3, max_size=5),
    lies=st.lists(st.tuples(st.integers(2, 2**40), st.floats(-1e15, 1e15), st.floats(0, 1e30)), max_size=2),
)
def test_a_minority_of_liars_moves_a_mean_within_reach(kind, honest, lies):
    mean, variance = sum_robust([_client(kind, *own) for own in [*lies, *honest]]).statistics("bn")
    _, means, variances = zip(*honest, strict=True)
    wide = max(robust.SPREAD * (max(means) - min(means)), robust.CLOSE * max(variances) ** 0.5)
    assert min(means) - wide - 1e-3 <= mean <= max(means) + wide + 1e-3
    between = (max(means) - min(means) + 2 * wide) ** 2 if kind == "fixed" else 0
    most = max(robust.SPREAD * (max(variances) - min(variances)), robust.CLOSE * max(variances))
    assert 0 <= variance <= (max(variances) + most + between) * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_clients_that_did_not_reach_a_layer_have_no_say(kind):
    nothing = Moments(kind, {"bn": LayerMoments(0, torch.zeros(1).double(), torch.zeros(1).double())})
    near, far = [_client(kind, 10, mean, 1.0) for mean in (1.0, 1.1, 1.2)], _client(kind, 10, 30.0, 1.0)
    mean, _ = sum_robust([nothing] * 9 + [*near, far]).statistics("bn")
    assert mean == sum_robust([*near, far]).statistics("bn")[0]
    assert 1.0 < mean < 1.3
    assert sum_robust([nothing] * 3).layers["bn"].count == 0
    assert sum_robust([nothing, near[0], far]).layers["bn"].count == 20


def test_a_rate_without_moments_is_named_with_those_that_have_some():
    by_rate = MomentsByRate({0.5: _moments()})
    assert (by_rate.get(1.0), 1.0 in by_rate) == (None, False)
    with pytest.raises(ConfigError, match=r"no moments of rate 1, only of 0\.5: clients measure them"):
        by_rate[1.0]
    with pytest.raises(ConfigError, match="only of none"):
        MomentsByRate()[0.25]
