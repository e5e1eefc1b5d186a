"""Gradients at odds: properties of the projections, and a slow twin for gem."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from heterofl_flwr.training.distill import JOIN, project_gem, project_pcgrad

SIZE = 6
numbers = st.floats(-10, 10, allow_subnormal=False).map(lambda value: 0.0 if abs(value) < 1e-3 else value)
vectors = st.lists(numbers, min_size=SIZE, max_size=SIZE).map(lambda values: torch.tensor(values, dtype=torch.float64))


def scale(one, two):
    return float(one.norm() * two.norm())


@given(vectors, st.lists(vectors, min_size=1, max_size=4))
def test_gem_is_at_odds_with_no_constraint(gradient, constraints):
    moved = project_gem(gradient, constraints)
    for constraint in constraints:
        assert float(moved.dot(constraint)) >= -1e-6 * scale(gradient, constraint)


@given(vectors, st.lists(vectors, min_size=1, max_size=4))
def test_without_conflict_nothing_changes(gradient, constraints):
    agreeing = [constraint * torch.sign(constraint.dot(gradient)) for constraint in constraints]
    assert torch.equal(project_gem(gradient, agreeing), gradient)
    assert torch.equal(project_pcgrad(gradient, agreeing), gradient)


@given(vectors, vectors)
def test_pcgrad_and_gem_agree_for_one_constraint(gradient, constraint):
    torch.testing.assert_close(
        project_gem(gradient, [constraint]), project_pcgrad(gradient, [constraint]), rtol=1e-7, atol=1e-7
    )


def nearest_by_descent(gradient, constraints):
    """Return gem's answer from its dual, by many small steps."""
    rows = np.stack([one.numpy() / np.linalg.norm(one.numpy()) for one in constraints])
    weights = np.zeros(len(rows))
    for _ in range(200_000):
        weights = np.maximum(weights - 0.1 * rows @ (gradient.numpy() + weights @ rows), 0)
    return gradient + torch.from_numpy(weights @ rows)


@pytest.mark.parametrize("seed", range(6))
def test_gem_is_the_nearest(seed):
    draw = torch.Generator().manual_seed(seed)
    gradient, *constraints = torch.randn(4, SIZE, generator=draw, dtype=torch.float64)
    constraints = [constraint - 0.7 * gradient for constraint in constraints]
    expected = nearest_by_descent(gradient, constraints)
    torch.testing.assert_close(project_gem(gradient, constraints), expected, rtol=1e-5, atol=1e-6)


@given(vectors, vectors)
def test_the_step_undoes_neither_gradient(private, shared):
    for name in ("pcgrad", "gem"):
        step = JOIN[name](private, shared)
        for own in (private, shared):
            assert float(step.dot(own)) >= -1e-6 * max(scale(private, own), scale(shared, own))


@given(vectors, vectors)
def test_gradients_that_agree_are_added(private, shared):
    assume(float(private.dot(shared)) >= 0)
    for name in JOIN:
        assert torch.equal(JOIN[name](private, shared), private + shared)


def test_by_hand():
    right, back = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert project_pcgrad(back, [right]).tolist() == [0.0, 1.0]
    assert JOIN["none"](right, back).tolist() == [0.0, 1.0]
    # Each loses what is against the other: (1, 0) becomes (0.5, 0.5), (-1, 1) becomes (0, 1).
    assert JOIN["pcgrad"](right, back).tolist() == [0.5, 1.5]
    # Their sum, (0, 1), is at odds with neither.
    assert JOIN["gem"](right, back).tolist() == [0.0, 1.0]
    # Of opposite ones nothing is left.
    assert JOIN["gem"](right, -2 * right).abs().max() < 1e-6


def test_too_many_constraints_are_refused():
    with pytest.raises(ValueError, match="9 constraints, expected at most 8"):
        project_gem(torch.ones(2), [torch.ones(2)] * 9)
