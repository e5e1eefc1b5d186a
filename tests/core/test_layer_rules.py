"""Every registered rule, by what it is for: the slice computes what the global layer does with the rest zeroed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core import Axis, Plan, prefix
from heterofl_flwr.core.slice_plan import is_prefix
from tests.core import twin

# torch says once that a fast path is not taken.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
OLDER = "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"
FULL = 4
"""The width unit of global layers; local ones have 1 to 3."""


@dataclass(frozen=True)
class Case:
    """A layer by its width unit; the shape of its input, and where that and the output have their channels."""

    make: Callable[[int], nn.Module]
    shape: Callable[[int], tuple[int, ...]]
    axis: int = 1
    out_axis: int = 1
    out_parts: int = 1
    any_choice: bool = True


def _image(dims, channels=2):
    return lambda n: (3, channels * n, *[7] * dims)


def _sequence(features=3):
    return lambda n: (2, 5, features * n)


def _attention(n):
    return nn.MultiheadAttention(4 * n, 2)


BOTH_WAYS = {"bidirectional": True, "batch_first": True}
_last = partial(Case, axis=-1, out_axis=-1)
_recurrent = partial(_last, shape=_sequence())
CASES = {
    "linear": Case(lambda n: nn.Linear(3 * n, 2 * n), lambda n: (5, 3 * n)),
    "weight norm": Case(lambda n: weight_norm(nn.Linear(3 * n, 2)), lambda n: (5, 3 * n)),  # a row of zeros has no norm
    "conv2d": Case(lambda n: nn.Conv2d(2 * n, 3 * n, (3, 2), dilation=2, bias=False), _image(2)),
    "transposed 2d": Case(lambda n: nn.ConvTranspose2d(2 * n, 3 * n, 3, output_padding=1, stride=2), _image(2)),
    "depthwise": Case(lambda n: nn.Conv2d(2 * n, 2 * n, 3, groups=2 * n), _image(2)),
    "depthwise, three each": Case(lambda n: nn.Conv2d(2 * n, 6 * n, 3, groups=2 * n), _image(2), any_choice=False),
    "groups of constant size": Case(lambda n: nn.Conv1d(2 * n, 4 * n, 3, groups=n), _image(1), any_choice=False),
    "batch norm 1d": Case(lambda n: nn.BatchNorm1d(2 * n), _image(1)),
    "batch norm 2d": Case(lambda n: nn.BatchNorm2d(2 * n), _image(2)),
    "instance norm 2d": Case(lambda n: nn.InstanceNorm2d(2 * n, affine=True), _image(2)),
    "group norm": Case(lambda n: nn.GroupNorm(n, 2 * n), _image(2), any_choice=False),
    "prelu": Case(lambda n: nn.PReLU(2 * n), _image(2)),
    "embedding": Case(lambda n: nn.Embedding(11, 3 * n, padding_idx=0), lambda n: (5,), out_axis=-1),
    "embedding bag": Case(lambda n: nn.EmbeddingBag(11, 3 * n), lambda n: (5, 4), out_axis=-1),
    "lstm both ways, deep": _recurrent(lambda n: nn.LSTM(3 * n, 2 * n, 3, **BOTH_WAYS), out_parts=2),
    "lstm projected": _recurrent(lambda n: nn.LSTM(3 * n, 3 * n, 2, proj_size=n, **BOTH_WAYS), out_parts=2),
    "lstm of twelve layers": _recurrent(lambda n: nn.LSTM(n, n, 12, **BOTH_WAYS), shape=_sequence(1), out_parts=2),
    "gru both ways, deep": _recurrent(lambda n: nn.GRU(3 * n, 2 * n, 2, **BOTH_WAYS), out_parts=2),
    "rnn, deep": _recurrent(lambda n: nn.RNN(3 * n, 2 * n, 2, batch_first=True)),
    "lstm cell": Case(lambda n: nn.LSTMCell(3 * n, 2 * n), lambda n: (5, 3 * n)),
    "gru cell": Case(lambda n: nn.GRUCell(3 * n, 2 * n), lambda n: (5, 3 * n)),
    "rnn cell": Case(lambda n: nn.RNNCell(3 * n, 2 * n), lambda n: (5, 3 * n)),
    "attention": _last(lambda n: nn.MultiheadAttention(6 * n, 2, batch_first=True), _sequence(6)),
    "attention of fewer heads": _last(
        lambda n: nn.MultiheadAttention(3 * n, n, add_bias_kv=True, batch_first=True), _sequence(), any_choice=False
    ),
}


def _randomised(layer):
    """Return the layer in evaluation mode, with no parameter left at a value that hides mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def _example(shape):
    generator = torch.Generator().manual_seed(6)
    return torch.randn(shape, generator=generator)


def _run(layer, x):
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        x = (x.abs() * 3).long()
    out = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def _match_temperature(full, local):
    """Undo that the softmax divides by the square root of a head dimension that differs."""
    if isinstance(full, nn.MultiheadAttention):
        ratio = math.sqrt(full.head_dim / local.head_dim)
        for tensor in (full.in_proj_weight, full.in_proj_bias):
            tensor[: full.embed_dim] *= ratio


def _places(full, kept, parts, slice_function):
    chosen = None if full == kept else slice_function(full // parts, kept // parts)
    return twin.positions(full, kept, parts, chosen)


SLICE_FUNCTIONS = {"prefix": prefix, "rolling": twin.rolling(1), "scattered": twin.scattered(2)}


@pytest.mark.parametrize("slice_function", SLICE_FUNCTIONS.values(), ids=SLICE_FUNCTIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_slice_computes_what_the_zeroed_global_layer_does(case, slice_function):
    if slice_function is not prefix and not case.any_choice:
        return
    for unit in range(1, FULL):
        full, local = _randomised(case.make(FULL)), _randomised(case.make(unit))
        twin.zero_extend(Plan.of(full, local).sliced(slice_function), full, local)
        _match_temperature(full, local)
        whole = x = _example(case.shape(unit))
        if x.shape != case.shape(FULL):
            width = case.shape(FULL)[case.axis]
            whole = twin.spread(x, case.axis, width, _places(width, x.shape[case.axis], 1, slice_function))
        found, expected = _run(full, whole), _run(local, x)
        width, kept = found.shape[case.out_axis], expected.shape[case.out_axis]
        places = _places(width, kept, case.out_parts, slice_function)
        torch.testing.assert_close(found, twin.spread(expected, case.out_axis, width, places), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (nn.SyncBatchNorm, {"weight": (3,), "bias": (3,)}),
        (lambda n: nn.LayerNorm((n, 5)), {"weight": (3, 5), "bias": (3, 5)}),
        (nn.RMSNorm, {"weight": (3,)}),
        (nn.InstanceNorm2d, {}),
    ],
)
def test_norms_keep_a_prefix_and_no_statistics(make, shapes):
    plan = Plan.of(make(4), make(3))
    assert dict(plan.shapes) == shapes
    assert all(map(is_prefix, plan.axes.values()))


def test_attention_with_keys_and_values_of_their_own_widths():
    full, local = (nn.MultiheadAttention(4 * n, 2, kdim=3 * n, vdim=5, add_bias_kv=True) for n in (4, 3))
    axes = Plan.of(full, local).axes
    assert axes["q_proj_weight"] == (Axis(16, 12, 2), Axis(16, 12))
    assert axes["k_proj_weight"] == (Axis(16, 12, 2), Axis(12, 9))
    assert axes["v_proj_weight"] == (Axis(16, 12, 2), Axis(5, 5))
    assert axes["bias_k"][-1] == axes["out_proj.weight"][1] == Axis(16, 12, 2)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_a_parametrized_layer_keeps_a_prefix_of_each_tensor(norm):
    def make(n):
        return nn.Sequential(norm(nn.Conv2d(3, 2 * n, 3)), nn.Flatten(), norm(nn.Linear(2 * n, 5)))

    for unit in (2, FULL):
        plan = Plan.of(make(FULL), make(unit))
        assert all(map(is_prefix, plan.axes.values()))
        assert plan.shapes == {name: own.shape for name, own in make(unit).named_parameters()}


@pytest.mark.parametrize(("make", "name"), [(lambda n: nn.LSTM(3, n), "weight_ih_l0"), (_attention, "in_proj_weight")])
def test_a_parametrized_layer_of_gates_or_heads_is_not_cut(make, name):
    full, again, local = (weight_norm(make(n), name) for n in (4, 4, 2))
    assert Plan.of(full, again).parameters
    with pytest.raises(ShapeError, match=r"parametrizations.* do not say where its gates, heads or groups are"):
        Plan.of(full, local)


@pytest.mark.parametrize(
    ("make", "name"), [(CASES["lstm both ways, deep"].make, "weight_ih_l1"), (_attention, "in_proj_weight")]
)
@pytest.mark.filterwarnings(OLDER)
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_older_norms_keep_the_entries_of_the_weight_that_they_replace(make, name, norm):
    expected = Plan.of(make(FULL), make(2)).axes[name]
    axes = Plan.of(*(norm(make(n), name) for n in (FULL, 2))).axes
    replaced = [own for own in axes if own.startswith(f"{name}_") and "reverse" not in own]
    assert replaced
    for own in replaced:
        assert axes[own][0] == expected[0]
        assert axes[own][1] in (expected[1], Axis(1, 1))


def test_a_parametrization_with_a_buffer_of_its_own_raises():
    with pytest.raises(ShapeError, match=r"layer 0\.parametrizations\.weight .*: _Orthogonal\(\) has a buffer"):
        Plan.of(*(nn.Sequential(orthogonal(nn.Linear(3, 4))) for _ in range(2)))


@pytest.mark.parametrize("name", ["depthwise, three each", "groups of constant size", "attention of fewer heads"])
def test_groups_and_heads_that_are_dropped_are_the_last_ones(name):
    plan = Plan.of(CASES[name].make(FULL), CASES[name].make(2))
    with pytest.raises(ConfigError, match=r"weight.* keep a prefix of their groups, heads or .*elastic"):
        plan.sliced(SLICE_FUNCTIONS["rolling"])
    assert plan.sliced(prefix) == plan
    Plan.of(CASES[name].make(FULL), CASES[name].make(FULL)).sliced(SLICE_FUNCTIONS["rolling"])
