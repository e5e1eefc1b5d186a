"""The accountant against an accepted library, exact mechanisms, and what must hold of any."""

import math

import pytest

from heterofl_flwr.core.noise import ORDERS, divergences, epsilon

CASES = [(0.3, 1), (1.0, 1), (1.5, 100), (4.0, 2250), (20.0, 10)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("noise", "releases"), CASES)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_an_accepted_library_finds_the_same_at_the_same_orders(noise, releases, delta):
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    spent = rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=releases, orders=ORDERS)
    assert divergences(noise, releases) == pytest.approx(spent.tolist(), rel=1e-12)
    expected, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)
    assert epsilon(divergences(noise, releases), delta) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("noise", "releases"), CASES)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_epsilon_holds_for_continuous_noise_and_is_not_far_above_what_is_needed(noise, releases, delta):
    """Releases with continuous noise are one with less noise, whose delta is known (Balle and Wang, 2018)."""
    found = epsilon(divergences(noise, releases), delta)
    assert exact_delta(noise / math.sqrt(releases), found) <= delta
    assert exact_delta(noise / math.sqrt(releases), 0.8 * found) > delta


def exact_delta(noise, epsilon):
    def below(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    return below(1 / (2 * noise) - epsilon * noise) - math.exp(epsilon) * below(-1 / (2 * noise) - epsilon * noise)


@pytest.mark.parametrize("deviation", [0.7, 2.0])
@pytest.mark.parametrize("order", [1.1, 2.5, 7.3])
@pytest.mark.parametrize("shift", [1, 3])
def test_a_divergence_bounds_that_of_the_discrete_gaussian(deviation, order, shift):
    """By its definition, over whole numbers; what is added up is a vector of them."""
    values = range(-200, 201)

    def log_of(value):
        return -(value**2) / (2 * deviation**2)

    total = math.fsum(math.exp(log_of(value)) for value in values)
    terms = [math.exp(order * log_of(value - shift) + (1 - order) * log_of(value)) for value in values]
    found = math.log(math.fsum(terms) / total) / (order - 1)
    (bound,) = divergences(deviation / shift, 1, [order])
    assert found <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("noise", "releases"), [(0.3, 100), (100.0, 1)])
def test_the_orders_lie_close_enough(noise, releases):
    """Much given away asks for orders below 2, and little for large ones; more of them would change nothing."""
    dense = [1 + 2 ** (step / 64) for step in range(-640, 1281)]
    best = epsilon(divergences(noise, releases, dense), 1e-5, dense)
    assert epsilon(divergences(noise, releases), 1e-5) == pytest.approx(best, rel=5e-3)
    whole = list(range(2, 65))
    assert epsilon(divergences(noise, releases, whole), 1e-5, whole) > 1.05 * best


def test_more_noise_and_fewer_releases_give_less_away():
    base = epsilon(divergences(1.0, 100), 1e-5)
    assert epsilon(divergences(2.0, 100), 1e-5) < base
    assert epsilon(divergences(1.0, 50), 1e-5) < base
    assert epsilon(divergences(1.0, 100), 1e-3) < base
