"""What ``elastic`` returns: widths, what is attached, and that the user's model stays as it was."""

import copy
import pickle
import warnings
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core import Axis, Plan, prefix, width
from heterofl_flwr.elastic_models import SCALED, elastic
from heterofl_flwr.nn import CNN, Exits, PreResNet, collect_moments
from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from tests.core import twin
from tests.elastic_models.families import ARCHITECTURES, FAMILIES, Then, conv, images


def _mlp():
    return nn.Sequential(nn.Linear(3, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))


X = torch.randn(4, 3)
SMALL = TransformerShape(sequence=6, embedding=24, hidden=20, heads=4, layers=2)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda rate: CNN(1, 10, (8, 16), rate=rate), images(8, 1)),
        (lambda rate: PreResNet(3, 5, hidden=(8, 12, 16, 20), rate=rate), images(32)),
        (lambda rate: PreResNet(3, 5, hidden=(8, 12, 16, 20), rate=rate, norm="none"), images(16)),
        (lambda rate: Transformer(11, SMALL, rate=rate), torch.randint(11, (2, 6))),
    ],
    ids=["cnn", "preresnet", "preresnet without norms", "transformer"],
)
@pytest.mark.parametrize("rate", [pytest.param(0.5, marks=pytest.mark.slow), 0.3])
def test_the_papers_models_are_cut_as_their_own_builds_say(build, inputs, rate):
    ours, theirs = elastic(build(1.0), inputs), build(rate)
    shapes = {name: parameter.shape for name, parameter in ours(rate).named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in theirs.named_parameters()}
    if not isinstance(theirs, Transformer):  # whose embedding they cut as one, and a trace head by head
        assert ours.plan(rate) == Plan.of(build(1.0), theirs)


@pytest.mark.parametrize(
    ("options", "kept"), [({}, width(20, 0.07)), ({"multiple_of": 8}, 8), ({"multiple_of": 99}, 20)]
)
def test_widths_are_rounded_up_but_not_beyond_the_model(options, kept):
    build = elastic(_mlp(), X, **options)
    assert build(0.07)[0].out_features == kept
    assert build(1.0)[0].out_features == 20
    assert build.plan(0.07).axes["0.weight"][0] == Axis(20, kept)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell])
def test_slices_print_their_widths(cell):
    small = elastic(nn.Sequential(nn.Linear(3, 8), nn.PReLU(8), cell(8, 6), nn.Linear(6, 2)), X)(0.5)
    assert [repr(small[1]), repr(small[2])] == [repr(nn.PReLU(4)), repr(cell(4, 3))]


def test_layers_that_are_named_stay_whole():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    assert elastic(model, X)(0.5)[1].weight.shape == (3, 4)
    assert elastic(model, X, fixed=["1"])(0.5)[1].weight.shape == (6, 8)
    assert elastic(model, X, fixed=["0.bias"])(0.5)[1].weight.shape == (3, 8)
    for pattern, other in (("head*", model), ("2", nn.Sequential(model[0], model[1], nn.ReLU()))):
        with pytest.raises(ConfigError, match=rf"layer with parameters, matches '{pattern[:4]}.*'; there are 0, 1"):
            elastic(other, X, fixed=[pattern])


def test_modes_and_frozen_parameters_stay():
    model = _mlp().eval()
    model[0].weight.requires_grad_(False)
    build = elastic(model, X)
    before = build(0.5)[0].weight.clone()
    nn.init.zeros_(model[0].weight)
    small = build(0.5)
    assert torch.equal(small[0].weight, before)
    assert not small.training
    assert [parameter.requires_grad for parameter in small.parameters()] == [False] + [True] * 5


def test_building_slices_leaves_parametrizations_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    nn.init.normal_(model[1].parametrizations.weight.original)
    build = elastic(model, X, scaler=True)
    assert build(0.5)[1].training
    for name, tensor in model.state_dict().items():
        few = tuple(map(slice, build(0.5).state_dict()[name].shape))
        assert torch.equal(build(0.5).state_dict()[name], tensor[few])
        assert torch.equal(build(1.0).state_dict()[name], tensor)


def test_the_scaler_divides_in_training_what_shrinks():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    plain, scaled = elastic(model, X, scaler=False)(0.5), elastic(model, X, global_rate=0.8, scaler=True)(0.4)
    assert torch.equal(scaled.eval()(X), elastic(model, X, scaler=False)(0.4)(X))
    half = elastic(model, X, scaler=True)(0.5)
    torch.testing.assert_close(half[0](X), plain[0](X) / 0.5)
    torch.testing.assert_close(half[1](X[:, :1].expand(-1, 4)), plain[1](X[:, :1].expand(-1, 4)))
    torch.testing.assert_close(scaled.train()[0](X), elastic(model, X, scaler=False)(0.4)[0](X) / 0.5)


@pytest.mark.parametrize(
    ("norm", "scaled"),
    [
        *((make(8), True) for make in (nn.BatchNorm1d, nn.RMSNorm)),
        *((layer, False) for layer in (nn.Identity(), Then(lambda self, x: x + torch.empty_like(x).normal_()))),
        *((make(nn.Linear(8, 8)), False) for make in (parametrizations.weight_norm, parametrizations.spectral_norm)),
    ],
)
def test_the_scaler_is_there_where_the_model_normalises(norm, scaled):
    """Without norms each narrow layer would enlarge what the next one sees, and a plain network diverges."""
    model = nn.Sequential(nn.Linear(3, 8), norm, nn.Linear(8, 2))
    plain = elastic(model, X, scaler=False)(0.5)[0](X)
    torch.testing.assert_close(elastic(model, X)(0.5)[0](X), plain / 0.5 if scaled else plain)


def test_the_scaler_follows_layers_of_a_type_that_is_added(monkeypatch):
    product = Then(lambda self, x: (x @ self.weight).view(-1, self.outputs))  # as GPT-2's ``Conv1D``
    product.weight, product.outputs = nn.Parameter(torch.randn(3, 8)), 8
    model = nn.Sequential(product, nn.Linear(8, 2))
    plain = elastic(model, X, scaler=False)(0.5)[0](X)
    assert torch.equal(elastic(model, X, scaler=True)(0.5)[0](X), plain)
    monkeypatch.setitem(SCALED, Then, "outputs")
    torch.testing.assert_close(elastic(model, X, scaler=True)(0.5)[0](X), plain / 0.5)


def test_outputs_that_are_named_keep_their_width():
    def forward(self, x):
        hidden = self.second(self.first(x))
        return {"logits": self.last(hidden), "hidden": hidden}

    model = Then(forward, first=nn.Linear(5, 12), second=nn.Linear(12, 24), last=nn.Linear(24, 3))
    example = torch.zeros(1, 5)
    with pytest.warns(UserWarning, match=r"keeps 61% (.|\n)*one of the model's outputs"):
        assert elastic(model, example)(0.5)(example)["hidden"].shape == (1, 24)
    build = elastic(model, example, outputs=["logits"])
    assert {name: tuple(value.shape) for name, value in build(0.5)(example).items()} == {
        "logits": (1, 3),
        "hidden": (1, 12),
    }
    with pytest.raises(ConfigError, match="the model returned a dict without logit; it has logits, hidden"):
        elastic(model, example, outputs=["logit"])


def test_invalid_options_and_rates_raise():
    wrong = ({"global_rate": 2}, 1.0), ({"global_rate": 0.5}, 1.0), ({}, 1.5)
    for options, rate in wrong:
        with pytest.raises(ConfigError, match="rate"):
            elastic(_mlp(), X, **options)(rate)


@pytest.mark.parametrize("number", [0, -4, 1.5])
def test_widths_are_multiples_of_a_positive_integer(number):
    with pytest.raises(ConfigError, match=f"multiple_of is {number}; expected an integer of 1 or more"):
        elastic(_mlp(), X, multiple_of=number)


@pytest.mark.parametrize("model", [nn.Sequential, lambda x: x])
def test_a_class_or_a_function_is_no_model(model):
    with pytest.raises(ConfigError, match=r"model is .*; expected a module, such as Net\(\) of a class Net"):
        elastic(model, X)


def test_slices_of_different_models_are_told_apart():
    build, other = elastic(_mlp(), X), elastic(nn.Sequential(*_mlp(), nn.Identity()), X, fixed=["0"])
    for full, local in ((build(1.0), other(0.5)), (build(0.25), build(0.5)), (_mlp(), build(0.5))):
        with pytest.raises(ShapeError, match=r"its rule gives|the global model|local"):
            Plan.of(full, local)
    model = _mlp()
    assert Plan.of(elastic(model, X)(1.0), elastic(model, X)(0.5)) == elastic(model, X).plan(0.5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_slice_is_copied_and_pickled_by_the_users_class(again):
    model, inputs = ARCHITECTURES["convnext"]()
    build = elastic(model, inputs)
    small = again(build(0.5))
    assert isinstance(small, type(model))
    assert type(small) is type(build(1.0))
    assert Plan.of(build(1.0), small) == build.plan(0.5)
    assert torch.equal(small.eval()(inputs), build(0.5).eval()(inputs))


def test_other_slice_functions_keep_coupled_axes_aligned():
    model, inputs = FAMILIES["concatenated"]()
    plan = elastic(model, inputs).plan(0.5).sliced(twin.rolling(2))
    one, two = plan.axes["one.weight"][0], plan.axes["two.weight"][0]
    wanted = [*one.index, *(6 + place for place in two.index), *(16 + place for place in one.index)]
    assert list(plan.axes["three.weight"][1].index) == wanted
    assert plan.sliced(prefix) == elastic(model, inputs).plan(0.5)


def test_parts_of_a_split_by_numbers_of_a_layer_are_cut_separately():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes, self.first, self.last = [12, 4], nn.Linear(3, 16), nn.Linear(16, 2)

        def forward(self, x):
            one, two = self.first(x).split(self.sizes, 1)
            return self.last(torch.cat([one.relu(), two], 1))

    model = Parts()
    build = elastic(model, torch.zeros(1, 3))
    assert [build(rate).sizes for rate in (1.0, 0.5, 0.01)] == [[12, 4], [6, 2], [1, 1]]
    assert torch.equal(build(0.5).first.weight, model.first.weight[[*range(6), 12, 13]])


@pytest.mark.parametrize("form", [tuple, dict, UserDict])
def test_inputs_may_be_several(form):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            return {"logits": self.head(self.one(x) + self.two(y))}

    inputs = {"x": torch.zeros(1, 3), "y": torch.zeros(1, 5)}
    build = elastic(Two(), tuple(inputs.values()) if form is tuple else form(inputs))
    assert build(0.5)(**inputs)["logits"].shape == (1, 2)
    assert build(0.5).head.weight.shape == (2, 4)


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


def test_a_product_of_three_has_one_order_at_every_rate():
    def forward(self, x):
        return self.last(torch.einsum("bi,ij,jk->bk", self.first(x), self.down, self.up))

    model = Then(forward, first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    model.down, model.up = nn.Parameter(torch.ones(8, 100)), nn.Parameter(torch.ones(100, 8))
    build = elastic(model, X)
    assert [build(rate)(X).shape for rate in (0.9, 0.5, 0.1)] == [(4, 2)] * 3


@pytest.mark.parametrize(
    "read",
    [
        lambda table, number: table[-number:],
        lambda table, number: table.narrow(0, 1, number),
        lambda table, number: table[None, :number][0],
        lambda table, number: table[number],
    ],
    ids=["last", "narrow", "view", "one"],
)
def test_a_table_longer_than_the_example_keeps_its_length(read):
    def forward(self, x):
        return self.last(self.first(x) + read(self.table, x.shape[1]))

    model = Then(forward, first=nn.Linear(3, 12), last=nn.Linear(12, 2))
    model.table = nn.Parameter(torch.randn(9, 12))
    small = elastic(model, torch.zeros(1, 2, 3))(0.5)
    assert torch.equal(small.table, model.table[:, :6])
    assert small(torch.zeros(1, 8, 3)).shape == (1, 8, 2)


@pytest.mark.parametrize(
    ("divided", "warns"),
    [
        (lambda self, x: x.sum(1, keepdim=True) / 20, True),
        (lambda self, x: x.sum(1, keepdim=True) / self.width, True),
        (lambda self, x: torch.div(x.sum(1), 20)[:, None], True),
        (lambda self, x: x.sum(1)[:, None] / 20, True),
        (lambda self, x: (1 / 20) * x.sum(1, keepdim=True), True),
        (lambda self, x: torch.einsum("bc,bc->b", x, x).div_(20)[:, None], True),
        (lambda self, x: (x @ x.T / 20)[:, :1], True),
        (lambda self, x: x.sum(1, keepdim=True) / x.shape[1], False),
        (lambda self, x: x.sum(1, keepdim=True) * (1 / x.shape[1]), False),
        (lambda self, x: x.mean(1, keepdim=True), False),
        (lambda self, x: (x / 20).sum(1, keepdim=True) / 3, False),
        (lambda self, x: x[:, :, None].expand(-1, -1, 20).sum(2).sum(1, keepdim=True) * 20, False),
    ],
)
def test_a_sum_divided_by_a_literal_length_is_a_warning(divided, warns):
    layer = Then(divided)
    layer.width = 20
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        elastic(nn.Sequential(nn.Linear(3, 20), layer, nn.Linear(1, 2)), torch.zeros(2, 3))
    found = [one.filename for one in said if "Then divides a sum over channels by their full" in str(one.message)]
    assert found == [__file__] * warns


def test_a_model_that_cannot_be_cut_is_a_warning():
    def along_channels(self, x):
        x = self.first(x)
        return self.last(x * self.along(x[:, None])[:, 0].sigmoid())

    along = nn.Conv1d(1, 1, 3, padding=1)
    model = Then(along_channels, first=nn.Linear(3, 12), along=along, last=nn.Linear(12, 2))
    with pytest.warns(UserWarning, match="at rate 0.5 a slice keeps 100% of the parameters. Many") as caught:
        elastic(model, X)
    assert [one.filename for one in caught] == [__file__]


def test_the_logits_of_each_exit_keep_all_classes():
    """Those of the earlier exits were cut, so a shallow client could not answer the last classes."""
    stages = [nn.Linear(3, 12), nn.Linear(12, 12)]
    model = Exits(zip(stages, [nn.Linear(12, 5), nn.Linear(12, 5)], strict=True))
    for build in (elastic(model, X), elastic(nn.Sequential(nn.ReLU(), model), X)):
        small = build(0.5)
        assert [tuple(p.shape) for name, p in small.named_parameters() if "head.weight" in name] == [(5, 6), (5, 6)]
        assert torch.equal(build(1.0).eval()(X.relu()), model.eval()(X.relu()))


def test_results_that_the_model_does_not_return_stay_whole():
    """Logits for a loss of their own were cut, so a small model could not answer the last classes."""

    def keeping(self, x):
        x = self.first(x)
        self.logits = self.head(self.hidden(x).relu())
        return self.last(self.memory(x[None])[0])

    layers = {"first": nn.Linear(3, 12), "hidden": nn.Linear(12, 8), "head": nn.Linear(8, 5)}
    small = elastic(Then(keeping, **layers, memory=nn.GRU(12, 8), last=nn.Linear(8, 2)), X)(0.5)
    assert (small.hidden.weight.shape, small.head.weight.shape) == ((4, 6), (5, 4))
    assert small.memory.hidden_size == 4  # its last state is no result of its own


def test_a_batch_norm_without_tensors_is_measured_at_each_width():
    norm = nn.BatchNorm1d(20, affine=False, track_running_stats=False)
    build = elastic(nn.Sequential(nn.Linear(3, 20), norm, nn.Linear(20, 2)), X)
    for rate, channels in ((1.0, 20), (0.5, 10)):
        moments = collect_moments(build(rate), [X])
        assert build(rate)[1].num_features == len(moments.layers["1"].first_sum) == channels
