"""einops keeps shapes between calls: the widths of a slice must not depend on what ran before."""

import pytest
import torch
from torch import nn

from heterofl_flwr.elastic_models import elastic
from tests.elastic_models.families import Then

einops = pytest.importorskip("einops")


def test_a_model_that_ran_before_has_the_same_slices():
    def flat(self, x):
        return self.last(einops.rearrange(self.second(self.first(x)), "b n d -> b (n d)"))

    model = Then(flat, first=nn.Linear(5, 16), second=nn.Linear(16, 16), last=nn.Linear(96, 3))
    x = torch.randn(1, 6, 5)
    model(x)
    build = elastic(model, x)
    assert build(0.5).last.weight.shape == (3, 48)
    assert torch.equal(build(1.0)(x), model(x))
