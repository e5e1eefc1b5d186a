"""The accountant against published numbers, an integral, and what must hold of any."""

import math

import numpy as np
import pytest

from heterofl_flwr.core.accountant import ORDERS, divergences, epsilon


def spent(noise, rate, releases):
    return [releases * own for own in divergences(noise, rate)]


def test_a_published_number_is_met():
    # Opacus' tests of its RDP accountant: 2,250 steps, which with orders between whole numbers too is 7.32911.
    assert epsilon(spent(1.5, 0.04, 2250), 1e-5) == pytest.approx(7.32911117143, rel=2e-4)


def test_one_release_of_all_clients_is_the_gaussian_mechanism():
    assert divergences(2.0, 1.0) == tuple(order / 8 for order in ORDERS)
    assert divergences(2.0, 1 - 1e-12) == pytest.approx(divergences(2.0, 1.0), rel=1e-6)


@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.1), (2.0, 0.01), (1.0, 0.5)])
@pytest.mark.parametrize("order", [2, 3, 6])
def test_a_divergence_is_the_integral_that_defines_it(noise, rate, order):
    x = np.linspace(-15 * noise, 15 * noise + order, 400_001)
    plain = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    ratio = 1 - rate + rate * np.exp((2 * x - 1) / (2 * noise**2))
    expected = math.log(np.trapezoid(plain * ratio**order, x)) / (order - 1)
    assert divergences(noise, rate)[ORDERS.index(order)] == pytest.approx(expected, rel=1e-6)


def test_more_noise_fewer_clients_and_fewer_releases_give_less_away():
    base = epsilon(spent(1.0, 0.1, 100), 1e-5)
    assert epsilon(spent(2.0, 0.1, 100), 1e-5) < base
    assert epsilon(spent(1.0, 0.05, 100), 1e-5) < base
    assert epsilon(spent(1.0, 0.1, 50), 1e-5) < base
    assert epsilon(spent(1.0, 0.1, 100), 1e-3) < base


def test_without_noise_all_is_given_away_and_without_releases_nothing():
    assert divergences(0.0, 0.1) == (math.inf,) * len(ORDERS)
    assert epsilon(spent(1.0, 0.1, 0), 0.5) == 0
