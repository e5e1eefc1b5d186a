"""Plans of modules and of shapes: what they hold, and what is refused."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core import Aggregation, Axis, Plan, axes_between, prefix, register, width
from heterofl_flwr.core.exchanged import ALL, untied
from heterofl_flwr.core.slice_plan import shared_part
from tests.core import twin

HEADS = {"*.linear_[qkv].*": (8, 0), "*.linear_o.weight": (8, 1)}


def _attention(embedding):
    shapes = {}
    for letter in "qkvo":
        shapes[f"layers.0.linear_{letter}.weight"] = (embedding, embedding)
        shapes[f"layers.0.linear_{letter}.bias"] = (embedding,)
    return shapes


def test_foreign_state_dicts_are_sliced_as_the_design_shows():
    state = twin.random_state(_attention(32))
    plan = Plan.between(_attention(32), _attention(16), heads=HEADS)
    sub = plan.extract(state)
    assert {name: tuple(value.shape) for name, value in sub.items()} == _attention(16) == plan.shapes
    rows = [head * 4 + row for head in range(8) for row in range(2)]
    for letter in "qkv":
        name = f"layers.0.linear_{letter}"
        assert torch.equal(sub[f"{name}.weight"], state[f"{name}.weight"][rows][:, :16])
        assert torch.equal(sub[f"{name}.bias"], state[f"{name}.bias"][rows])
    assert torch.equal(sub["layers.0.linear_o.weight"], state["layers.0.linear_o.weight"][:16][:, rows])
    assert torch.equal(sub["layers.0.linear_o.bias"], state["layers.0.linear_o.bias"][:16])


def test_heads_tell_a_layer_what_it_cannot_know():
    class Tagger(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.lstm = nn.LSTM(3, hidden, bidirectional=True)
            self.classifier = nn.Linear(2 * hidden, 5)

    plan = Plan.of(Tagger(4), Tagger(3), heads={"classifier.weight": (2, 1)})
    assert plan.axes["classifier.weight"] == (Axis(5, 5), Axis(8, 6, 2))
    assert plan.axes["lstm.weight_ih_l0"] == (Axis(16, 12, 4), Axis(3, 3))  # the layer's own rule stands


def test_plans_are_equal_if_they_hold_the_same_entries():
    full = {"w": (4, 4)}
    plan = Plan.between(full, {"w": (2, 4)})
    assert plan == Plan.between(full, {"w": (2, 4)}).sliced(lambda full, kept: range(kept))
    assert plan == Plan.between(full, {"w": (2, 4)}, heads={"w": (2, 1)})  # a whole axis has no use for heads
    assert plan != Plan.between(full, {"w": (2, 3)})
    assert plan != Plan.between(full, {"w": (2, 4)}, heads={"w": (2, 0)})
    assert plan != Plan.between(full, {"w": (2, 4)}).sliced(twin.rolling(1))
    assert plan != Plan.between({"w": (5, 4)}, {"w": (2, 4)})
    assert plan != Plan.between(full, {})
    assert len({plan, Plan.between(full, {"w": (2, 4)})}) == 1
    assert plan.parameters == 8


def test_plans_survive_copying_and_pickling():
    plan = Plan.between({"w": (4, 4)}, {"w": (2, 4)}).sliced(twin.scattered(1))
    assert plan == pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan)
    hash(plan)  # which it remembers, but another process hashes text in another way
    assert vars(pickle.loads(pickle.dumps(plan))) == {"axes": plan.axes}


@given(full=st.integers(1, 40), heads=st.integers(1, 4), rates=st.tuples(st.integers(1, 1000), st.integers(1, 1000)))
def test_plans_of_growing_rates_are_nested(full, heads, rates):
    plans = [
        Plan.between(
            {"w": (full * heads, full)},
            {"w": (width(full * heads, rate / 1000, heads), width(full, rate / 1000))},
            heads={"*": (heads, 0)},
        )
        for rate in sorted((*rates, 1000))
    ]
    for inner, outer in pairwise(plans):
        assert outer.contains(inner)
        assert inner.contains(outer) == (inner == outer)


def test_a_plan_without_some_parameters_has_the_others_unchanged():
    plan = Plan.between({"w": (4, 4), "b": (4,)}, {"w": (2, 4), "b": (2,)})
    assert plan.without({"b", "unknown"}) == Plan.between({"w": (4, 4)}, {"w": (2, 4)})


@pytest.mark.parametrize("slice_function", [prefix, twin.rolling(1)])
def test_gradients_go_through_the_parts_of_a_state_back_to_it(slice_function):
    state = {"w": torch.ones(4, 4, requires_grad=True)}
    plan = Plan.between(state, {"w": (2, 4)}, heads={"w": (2, 0)}).sliced(slice_function)
    plan.parts(state)["w"].sum().backward()
    first = slice_function is prefix
    assert state["w"].grad.tolist() == [[float(row % 2 == (0 if first else 1))] * 4 for row in range(4)]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"v": (4,)}, "the global state has no parameter w; it has v: ArrayRecord"),
        ({"w": (4, 1)}, r"parameter w of the global state is \(4, 1\), the plan was made for \(4,\)"),
    ],
)
def test_a_plan_of_another_model_is_refused(state, reason):
    plan = Plan.between({"w": (4,)}, {"w": (2,)})
    with pytest.raises(ShapeError, match=reason):
        plan.extract(twin.random_state(state))
    with pytest.raises(ShapeError, match=reason):
        Aggregation(twin.random_state(state)).add(plan, {"w": torch.zeros(2)})


def _mlp(width, depth=1):
    hidden = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(3, width), *hidden)


class Tied(nn.Module):
    """An embedding and a decoder of one matrix, as language models have it."""

    def __init__(self, width, again=False):
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.decoder = nn.Linear(width, 7)
        self.decoder.weight = self.embedding.weight
        self.again = self.decoder if again else nn.Identity()


def test_a_tied_parameter_is_planned_once_under_its_first_name():
    full, local = Tied(4), Tied(2)
    plan = Plan.of(full, local)
    assert plan.axes["embedding.weight"] == (Axis(7, 7), Axis(4, 2))
    assert list(plan.axes) == ["embedding.weight", "decoder.bias"]
    assert plan.parameters == sum(parameter.numel() for parameter in local.parameters())
    local.load_state_dict(plan.extract(full.state_dict()), strict=False)
    assert torch.equal(local.decoder.weight, full.embedding.weight[:, :2])
    assert local.decoder.weight is local.embedding.weight


@pytest.mark.parametrize("loose", [0, 1])
def test_what_is_tied_in_one_of_the_models_alone_is_refused(loose):
    models = [Tied(4), Tied(2)]
    models[loose].decoder = nn.Linear(4 - 2 * loose, 7)
    kinds = ["tied to embedding.weight", "one of its own"]
    whole, own = kinds[:: -1 if loose == 0 else 1]
    expected = rf"parameter decoder.weight is {whole} in the global model, but {own} in the local one: tie the same"
    with pytest.raises(ShapeError, match=expected):
        Plan.of(*models)


def test_a_tied_parameter_that_is_cut_in_two_ways_is_refused():
    class Crossed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), Halved(4, width)
            self.two.weight = self.one.weight

    class Halved(nn.Linear):
        pass

    @register(Halved)
    def _(full, local):
        kept = {name: tuple(own.shape) for name, own in local.named_parameters()}
        parts = {"weight": {0: 2}, "bias": {}}
        return {name: axes_between(own.shape, kept[name], parts[name]) for name, own in full.named_parameters()}

    with pytest.raises(ShapeError, match=r"parameter one\.weight is two\.weight too, but their layers keep different"):
        Plan.of(Crossed(8), Crossed(4))


NOT_BETWEEN = [
    ((8,), (4,), {"w": (3, 0)}, "parameter w with heads "),
    ((8,), (4,), {"w": (2, -1)}, "parameter w with heads "),
    ((8,), (4,), {"w": (2, 1)}, "parameter w with heads "),
    ((4, 4), (5, 4), None, "parameter w: "),
    ((4, 4), (4,), None, "parameter w: "),
    ((4,), (4, 1), None, "parameter w: "),
]


@pytest.mark.parametrize(("full", "local", "heads", "reason"), NOT_BETWEEN)
def test_shapes_and_heads_that_do_not_fit_are_refused(full, local, heads, reason):
    with pytest.raises(ShapeError, match=reason):
        Plan.between({"w": full}, {"w": local}, heads=heads)


def test_names_and_patterns_without_a_parameter_are_refused():
    with pytest.raises(ConfigError, match=r"heads: no parameter matches W, linear_\?; the parameters are w$"):
        Plan.between({"w": (8,)}, {"w": (4,)}, heads={"linear_?": (2, 0), "W": (2, 0), "w": (2, 0)})
    with pytest.raises(ShapeError, match=r"no parameter a, b, c, d, e, 1 more; it has p0, p1, .*, 3 more"):
        Plan.between({f"p{number}": (2,) for number in range(8)}, dict.fromkeys("abcdef", (1,)) | {"p0": (1,)})


GROUPS = "groups must shrink with the channels and keep their size"
LAZY = nn.Sequential(nn.LazyLinear(4))
NOT_OF = {
    "deeper": (
        _mlp(4, depth=1),
        _mlp(2, depth=2),
        r"global model lacks: 2\.0\.bias, 2\.0\.weight; expected a build",
    ),
    "wider": (_mlp(2), _mlp(4), "layer 0 of type Linear: an axis of 2 entries cannot keep 4"),
    "lazy": (LAZY, LAZY, r"parameters 0\.bias, 0\.weight have no shape yet: run one batch"),
    "complex": (*[nn.Linear(2, 3, dtype=torch.complex64)] * 2, "parameters bias, weight are complex, and only real"),
    "empty": (nn.BatchNorm1d(4), nn.BatchNorm1d(0), r"bias, weight of the local model have no entries: round"),
    "bias": (nn.Linear(4, 4), nn.Linear(2, 2, bias=False), r"is Linear with \['weight', 'bias'\]"),
    "heads": (nn.MultiheadAttention(16, 4), nn.MultiheadAttention(4, 2), "4 heads of 4 became 2 heads of 2: keep ei"),
    "kernel": (nn.Conv2d(4, 4, 3), nn.Conv2d(2, 2, 1), r"layer \(the model itself\) .*: kernel sizes \(3, 3\) and"),
    "groups": (nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2), GROUPS),
    "transposed": (nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2), GROUPS),
    "no parameters": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), r"layer 0 is ReLU with \[\] .*, but GELU"),
}


@pytest.mark.parametrize(("full", "local", "reason"), NOT_OF.values(), ids=NOT_OF)
def test_models_that_do_not_correspond_are_refused(full, local, reason):
    with pytest.raises(ShapeError, match=reason):
        Plan.of(full, local)


def test_a_plan_is_shared_in_part_by_the_names_of_parameters():
    plan = Plan.of(_mlp(4), _mlp(2))
    assert shared_part(plan, ALL) is plan
    assert list(shared_part(plan, ["0.*", "*.bias"]).axes) == ["0.weight", "0.bias", "1.0.bias"]
    with pytest.raises(ConfigError, match=r"shared: no parameter matches head; the parameters are 0\.bias, "):
        shared_part(plan, ["0.*", "head"])


def test_tied_parameters_have_their_first_names_in_a_state():
    model = Tied(4)
    assert list(untied(model, model.state_dict())) == ["embedding.weight", "decoder.bias"]
