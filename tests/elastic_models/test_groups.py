"""Groups of channels: many narrow ones are dropped, few wide ones become narrower; a plain number stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.elastic_models import elastic
from tests.elastic_models.families import Then, conv, images


def _grouped(groups, **options):
    return nn.Sequential(conv(3, 16), nn.Conv2d(16, 24, 3, groups=groups, **options), conv(24, 4, 1))


@pytest.mark.parametrize(
    ("groups", "shape", "left"),
    [
        (2, (8, 3, 3, 3), 2),  # 24 and 8 of each group, times 0.3
        (4, (12, 4, 3, 3), 2),  # as many groups as each has inputs: two of four are left
        (8, (9, 2, 3, 3), 3),
        (1, (8, 5, 3, 3), 1),
    ],
)
def test_whatever_leaves_the_finer_choice_of_widths(groups, shape, left):
    layer = elastic(_grouped(groups), images())(0.3)[1]
    assert (tuple(layer.weight.shape), layer.groups) == (shape, left)
    assert (layer.in_channels, layer.out_channels) == (shape[1] * left, shape[0])


@pytest.mark.parametrize(("groups", "kept"), [(2, 8), (8, 16)])
def test_a_number_of_groups_that_stands_in_the_code_stays(groups, kept):
    def forward(self, x):
        return self.head(F.conv2d(self.stem(x), self.own.weight, groups=groups))

    own = nn.Conv2d(16, 16, 3, groups=groups, bias=False)
    small = elastic(Then(forward, stem=conv(3, 16), own=own, head=conv(16, 4, 1)), images())(0.5)
    assert small.stem.out_channels == kept
    assert small(images()).shape[1] == 4


def test_wide_groups_keep_the_first_of_each():
    model = _grouped(2)
    small = elastic(model, images())(0.5)
    rows = [*range(6), *range(12, 18)]
    assert torch.equal(small[1].weight, model[1].weight[rows][:, :4])
    assert torch.equal(small[0].weight, model[0].weight[[*range(4), *range(8, 12)]])
