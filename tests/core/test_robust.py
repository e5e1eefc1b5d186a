"""Robust means against their slow twin, by hand, and what hostile replies can do to them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core.robust import Robust, RobustAggregator
from tests.core import strategies, twin

OPTIONS = st.builds(
    Robust,
    mean=st.sampled_from(["trimmed", "median", "clip"]),
    trim=st.sampled_from([0.0, 0.2, 0.45]),
    few=st.sampled_from(["shorter", "keep"]),
)
SPACING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-20, torch.float64: 1e-12}
SHAPE = {"w": (4,)}


def added(drawn, robust, order=None):
    aggregator = RobustAggregator(drawn.state, **drawn.options, robust=robust)
    for number in order or range(len(drawn.plans)):
        reply = drawn.replies[number]
        aggregator.add(drawn.plans[number], reply.values, labels=reply.labels)
    return aggregator


@given(drawn=strategies.rounds(most=6, weights=st.just(1.0)), robust=OPTIONS)
def test_the_result_is_the_twins(drawn, robust):
    found = added(drawn, robust).result()
    fewest = min((len(drawn.state[name]) for name in drawn.options["label_rows"]), default=0)
    options = {**drawn.options, "classes": drawn.options["classes"] or fewest}
    expected = twin.robust_mean(drawn.state, drawn.replies, robust, **options)
    for name, value in found.items():
        assert value.dtype == drawn.state[name].dtype
        np.testing.assert_allclose(
            value.double().numpy(), expected[name], rtol=SPACING[value.dtype], atol=1e-5, err_msg=name
        )
