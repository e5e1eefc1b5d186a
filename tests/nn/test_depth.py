"""Models with fewer blocks: nested plans, the counting mean over them, and what is refused."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from heterofl_flwr import elastic, shallow
from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core import Plan, width
from heterofl_flwr.nn.build import plan_between
from heterofl_flwr.nn.depth import read_levels

X = torch.linspace(-1, 1, 6).view(2, 3)


def stack(blocks: int = 4) -> nn.Sequential:
    """Return a model with blocks of equal shape in the middle."""
    torch.manual_seed(0)
    middle = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(blocks)))
    return nn.Sequential(nn.Linear(3, 6), middle, nn.Linear(6, 2))


class TwoStacks(nn.Module):
    """A model with stacks of two and of four blocks, of which the second has only two different ones."""

    def __init__(self) -> None:
        super().__init__()
        one, other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.first = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.second = nn.ModuleList([one, other, one, other])

    def forward(self, x, calls):
        calls.append((len(self.first._modules), len(self.second._modules)))
        return nn.Sequential(*self.first, *self.second)(x)


@given(blocks=st.integers(1, 6), rates=st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_shallower_models_are_nested_in_deeper_ones(blocks, rates):
    model = stack(blocks)
    build = shallow(model, "1.*", X)
    plans = []
    for rate in sorted({*rates, 1000}):
        smaller = build(rate / 1000)
        assert list(dict(smaller[1].named_children())) == [str(number) for number in range(width(blocks, rate / 1000))]
        plans.append(Plan.of(model, smaller))
        assert plans[-1] == Plan.between(dict(model.named_parameters()), dict(smaller.named_parameters()))
    assert all(outer.contains(inner) for inner, outer in pairwise(plans))
    assert plans[-1] == Plan.of(model, model)


def test_a_shallow_model_computes_what_its_first_blocks_do():
    model = stack()
    build = shallow(model, "1.*", X)
    torch.testing.assert_close(build(0.5)(X), model[2](model[1][1](model[1][0](model[0](X)))), rtol=0, atol=0)
    torch.testing.assert_close(build(1.0)(X), model(X), rtol=0, atol=0)
    build(1.0)[0].weight.data.zero_()
    assert model[0].weight.any()
    assert len(model[1]) == 4


def test_every_depth_of_unequal_stacks_is_run():
    calls = []
    build = shallow(TwoStacks(), "*.*", (X, calls))
    assert calls == [depths for depths in ((2, 4), (2, 3), (1, 2), (1, 1)) for _ in ("training", "evaluation")]
    found = [tuple(list(dict(own._modules)) for own in build(rate).children()) for rate in (0.75, 0.25)]
    assert found == [(["0", "1"], ["0", "1", "2"]), (["0"], ["0"])]


def test_levels_may_differ_in_width_and_depth():
    build = shallow(elastic(stack(), X), "1.*", X, levels={"a": (1, 1), "b": (0.5, 0.75), 0.1: (0.5, 0.25)})
    full, both, least = (build(rate) for rate in (1.0, 0.5, 0.1))
    assert [(len(own[1]), own[0].out_features) for own in (full, both, least)] == [(4, 6), (3, 3), (1, 3)]
    assert Plan.of(full, both).contains(Plan.of(full, least))
    assert Plan.of(full, both).axes["1.2.0.weight"][0].local_size == 3
    assert plan_between(build, 1.0, 0.5) is plan_between(build, 1.0, 0.5)  # cached
    with pytest.raises(ConfigError, match=r"level c is not in levels \(a, b, 0\.1\): add its width and depth"):
        build(0.25)


def test_a_block_that_changes_the_shape_is_named():
    with pytest.raises(ConfigError, match=r"'layers\.\*' names no blocks of Sequential; it has \*, 1\.\*, 1\.0\.\*"):
        shallow(stack(1), "layers.*", X)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    with pytest.raises(ShapeError, match=r"without 3 \(it returns \(2, 5\), not \(2, 2\)\): only a block"):
        shallow(model, "*", X)
    with pytest.raises(ShapeError, match=r"without 2 \(RuntimeError: .*mat1 .*\): only a block"):
        shallow(model, "[0-2]", X)
    assert len(shallow(model, "[0-1]", X)(0.5)) == 3


@pytest.mark.parametrize("levels", [{"a": (1, 1), "b": (0.5, 1)}, {"b": (1, 1), 0.5: (1, 0.5)}])
def test_wrong_levels_are_refused_before_a_model_is_built(levels):
    with pytest.raises(ConfigError, match=r"a single model has one width|level 0\.5 is given twice"):
        shallow(stack(), "1.*", X, levels=levels)


@pytest.mark.parametrize("rates", [0.5, (0.7,), (1, 1, 1)])
def test_a_level_has_a_width_and_a_depth_rate(rates):
    with pytest.raises(ConfigError, match=r"levels\['b'\] is .*; expected its width and depth rate, such as \(0\.7, 0"):
        shallow(stack(), "1.*", X, levels={"a": (1, 1), "b": rates})


def test_levels_are_read_from_text():
    assert read_levels("width") is None
    assert read_levels("depth") == {}
    assert read_levels("b=0.7:0.75, 0.1=1:0.25") == {1.0: (1.0, 1.0), 0.5: (0.7, 0.75), 0.1: (1.0, 0.25)}
    for wrong in ("deep", "b=0.7:0.5:1"):
        with pytest.raises(ConfigError, match="is no level with a width rate and a depth rate"):
            read_levels(wrong)
    for wrong, text in (("b=2:1", "a rate of 2 is not usable"), ("b=1:1,0.5=1:0.5", r"level 0\.5 is given twice")):
        with pytest.raises(ConfigError, match=text):
            read_levels(wrong)


class Beside(nn.Module):
    """Four blocks, and something for each in a list of its own, which ``join`` makes use of."""

    def __init__(self, beside, join, block=lambda: nn.Linear(4, 4)):
        super().__init__()
        self.blocks, self.beside, self.join = nn.ModuleList(block() for _ in range(4)), beside, join

    def forward(self, x):
        outputs = []
        for block, own in zip(self.blocks, self.beside, strict=False):
            x = self.join(self, block(x), own, outputs)
        return x, outputs


def norms_beside():
    norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(4))
    return Beside(norms, lambda model, x, norm, outputs: norm(x))


def heads_in_training():
    def join(model, x, head, outputs):
        outputs += [head(x)] if model.training else []
        return x

    heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))
    return Beside(heads, join, lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def test_what_a_shallow_model_does_not_use_does_not_count():
    with pytest.warns(UserWarning, match=r"hold beside\.3\.weight.* and do not train them"):
        build = shallow(norms_beside(), "blocks.*", torch.zeros(2, 4))
    assert build(1.0).untrained == ()
    assert build(0.5).untrained == tuple(f"beside.{n}.{own}" for n in (2, 3) for own in ("weight", "bias"))
    assert not hasattr(shallow(stack(), "1.*", X)(0.5), "untrained")
    with pytest.warns(UserWarning, match=r"hold beside\.3\.weight"):
        assert "beside.2.bias" in shallow(heads_in_training(), "blocks.*", torch.zeros(1, 4))(0.5).untrained
    with pytest.raises(TypeError, match="example_inputs"):  # nobody leaves it out by mistake
        shallow(norms_beside(), "blocks.*")


class Blocks(nn.Module):
    """Four blocks; ``join`` is the forward."""

    def __init__(self, join):
        super().__init__()
        self.join, self.scale = join, nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        return self.scale * self.join(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda model, x: model.blocks[-1](nn.Sequential(*model.blocks)(x)),
        lambda model, x: sum(b(x) * (n == len(model.blocks) // 2) for n, b in enumerate(model.blocks)),
        lambda model, x: sum(b(x) for b in model.blocks) / len(model.blocks),
        lambda model, x: nn.Sequential(*model.blocks[::-1])(x),
    ],
    ids=["last", "middle", "mean", "backwards"],
)
def test_a_role_that_changes_with_the_depth_is_a_warning(forward):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build = shallow(Blocks(forward), "*.*", torch.ones(2, 4))
    text = "the role of blocks changes with the depth: the code counts the blocks of blocks, or takes them from the end"
    assert any(str(warning.message).startswith(text) for warning in caught)
    assert type(build(0.5).blocks) is nn.ModuleList


def test_each_stack_whose_blocks_are_counted_is_named():
    model = Blocks(lambda model, x: sum(b(x) for b in model.blocks) / len(model.blocks))
    pair = nn.Sequential(model, copy.deepcopy(model))
    with pytest.warns(UserWarning, match=r"counts the blocks of 0\.blocks, 1\.blocks, or"):
        shallow(pair, "*.blocks.*", torch.ones(2, 4))


def test_a_model_that_returns_no_tensor_raises():
    class Silent(nn.Sequential):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(ConfigError, match="Silent returned no tensor"):
        shallow(Silent(*stack()), "1.*", X)


def test_a_model_whose_copies_would_use_its_own_layers_is_refused():
    """A shallower model would not train its first layer."""
    model = stack()
    model.register_forward_pre_hook(lambda _, inputs: model[0](*inputs) @ torch.ones(6, 3))
    model[2].bias.grad = gradient = torch.ones(2)
    with pytest.raises(ConfigError, match=r"a copy of Sequential uses 0\.bias, 0\.weight of the model given"):
        shallow(model, "1.*", X)
    assert model[2].bias.grad is gradient
    assert model[0].weight.grad is None
