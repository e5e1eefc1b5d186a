"""Rounds small enough to check by hand: the paper's Figure 1, Equations 1 to 3, and label rows.

Six clients share three levels (m = 6, p = 3), with the shrinkage ratio r = 1/2. One client has level 1, two have
level 2 and three have level 3; every entry that a client holds has that client's value:

    client   1    2   3    4   5   6
    level    1    2   2    3   3   3
    value   60    6  12    1   2   3
"""

import pytest
import torch

from heterofl_flwr.core import LEVELS, Aggregation, Fidelity, Plan, width

CLIENTS = (("a", 60.0), ("b", 6.0), ("b", 12.0), ("c", 1.0), ("c", 2.0), ("c", 3.0))


def _filled(plan, value):
    return {name: torch.full(shape, value) for name, shape in plan.shapes.items()}


def test_figure_1_a_hidden_layer():
    # W_g is 4 x 4, so W_l^1 is 4 x 4, W_l^2 is 2 x 2 and W_l^3 is 1 x 1.
    state = {"hidden.weight": torch.full((4, 4), -1.0)}
    aggregator = Aggregation(state)
    for level, value in CLIENTS:
        side = width(4, LEVELS[level])
        plan = Plan.between(state, {"hidden.weight": (side, side)})
        aggregator.add(plan, _filled(plan, value))
    # Equation 1, first part: W^3 is the mean of all m = 6:            (60 + 6 + 12 + 1 + 2 + 3) / 6 = 84 / 6 = 14.
    # Equation 1, second part: W^2 \ W^3 of m - m_3 = 3:               (60 + 6 + 12) / 3 = 78 / 3 = 26.
    # Equation 2: W^1 \ W^2 of m - m_2:3 = 1:                          60 / 1.
    # Equation 3: W_g is their disjoint union.
    assert aggregator.result()["hidden.weight"].tolist() == [
        [14, 26, 60, 60],
        [26, 26, 60, 60],
        [60, 60, 60, 60],
        [60, 60, 60, 60],
    ]


@pytest.mark.parametrize(("choice", "mask_row"), [("paper", [-1, -1]), ("fixed", [26, 33])])
def test_the_row_of_mask_counts_for_nobody_or_for_every_holder(choice, mask_row):
    # A vocabulary of 2 words and [MASK]; an embedding of width 2. Clients 1, 2 and 3 (levels a, b, b here of rate
    # 1, 1/2, 1/2) have the words 0; 1; both.
    state = {
        "token": torch.full((3, 2), -1.0),
        "decoder": torch.full((2, 2), -1.0),
        "position": torch.full((2, 2), -1.0),
    }
    extra_rows = Fidelity.of(choice).extra_rows == "fixed"
    aggregator = Aggregation(state, label_rows=["token", "decoder"], extra_rows=extra_rows)
    for (level, value), labels in zip((("a", 33.0), ("b", 30.0), ("b", 15.0)), ([0], [1], [0, 1]), strict=True):
        kept = width(2, LEVELS[level])
        plan = Plan.between(state, {"token": (3, kept), "decoder": (2, kept), "position": (2, kept)})
        aggregator.add(plan, _filled(plan, value), labels=labels)
    new = aggregator.result()
    # Word 0, clients 1 and 3: column 0 (33 + 15) / 2 = 24, column 1 client 1 alone: 33.
    # Word 1, clients 2 and 3: column 0 (30 + 15) / 2 = 22.5, column 1 nobody: -1.
    words = [[24, 33], [22.5, -1]]
    assert new["decoder"].tolist() == words
    # [MASK], fixed: column 0 all three, 78 / 3 = 26, column 1 client 1: 33. Paper: its random start.
    assert new["token"].tolist() == [*words, mask_row]
    # Positions are nobody's labels: column 0 all three, column 1 client 1.
    assert new["position"].tolist() == [[26, 33], [26, 33]]
