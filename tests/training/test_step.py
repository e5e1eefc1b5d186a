"""ParameterSGD beside ``clip_grad_norm_`` and ``torch.optim.SGD``, which do the same in more passes."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies
from torch import nn

from heterofl_flwr.training import TrainOptions, step
from heterofl_flwr.training.step import ParameterSGD

OPTIONS = TrainOptions(learning_rate=0.1)
ROUNDING = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-13}}
SHAPES = strategies.lists(strategies.lists(strategies.integers(0, 4), max_size=5).map(tuple), min_size=1, max_size=4)
CHANGES = [
    {},
    {"weight_decay": 0.0, "clip": 1e-3},
    {"clip": 1e3, "proximal": 0.3},
    {"momentum": 0.0, "clip": None, "proximal": 2.0},
]


@pytest.fixture(params=[step.FUSED_DEVICES, ()], ids=["fused", "by parts"])
def devices(request, monkeypatch):
    """Let the fused kernel be used, or act as on a device where it does not work."""
    monkeypatch.setattr(step, "FUSED_DEVICES", request.param)


def tensors(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def parameters(shapes, dtype=torch.float32):
    return [nn.Parameter(tensor) for tensor in tensors(shapes, dtype)]


def compute(values, number):
    """Return something whose gradient is different at each parameter and step."""
    return sum(((place + 2) * value.sin() + number * value**2).sum() for place, value in enumerate(values))


def descend(values, options, steps=4):
    own = ParameterSGD(values, options)
    for number in range(steps):
        own.minimise(compute(values, number))


def assert_as_torch(values, options=OPTIONS, **rounding):
    """Compare with clipping and SGD by torch's own means."""
    twins, strides = copy.deepcopy(values), [value.stride() for value in values]
    descend(values, options)
    received = [twin.detach().clone() for twin in twins]
    optimizer = torch.optim.SGD(
        twins, options.learning_rate, options.momentum, weight_decay=options.weight_decay, foreach=False
    )
    for number in range(4):
        optimizer.zero_grad()
        pulls = sum(((one - other) ** 2).sum() for one, other in zip(twins, received, strict=True))
        (compute(twins, number) + options.proximal / 2 * pulls).backward()
        if options.clip:
            nn.utils.clip_grad_norm_(twins, options.clip)
        optimizer.step()
    for value, twin in zip(values, twins, strict=True):
        torch.testing.assert_close(value, twin, **(rounding or ROUNDING[value.dtype]))
    assert [value.stride() for value in values] == strides


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("dtype", ROUNDING)
@given(changes=strategies.sampled_from(CHANGES), shapes=SHAPES)
def test_equals_clipping_and_sgd(dtype, changes, shapes):
    assert_as_torch(parameters(shapes, dtype), replace(OPTIONS, **changes))


@pytest.mark.usefixtures("devices")
@given(
    changes=strategies.sampled_from(CHANGES),
    shape=strategies.tuples(*[strategies.integers(1, 4)] * 4),
    order=strategies.permutations(range(4)),
)
def test_equals_them_in_any_layout_of_memory(changes, shape, order):
    """Channels last among them."""
    turned = torch.randn(shape, generator=torch.Generator().manual_seed(1)).permute(order)
    flat = turned.detach().clone(memory_format=torch.channels_last)
    assert_as_torch([nn.Parameter(turned), nn.Parameter(flat), *parameters([(3,)])], replace(OPTIONS, **changes))


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_gradients_of_embeddings_may_be_sparse(changes):
    words, found = torch.tensor([[1, 1, 3]]), []
    for sparse in (True, False):
        model = nn.Embedding(5, 2, _weight=torch.arange(10.0).view(5, 2), sparse=sparse)
        own = ParameterSGD(model.parameters(), replace(OPTIONS, **changes))
        for _ in range(3):
            own.minimise(model(words).square().sum())
        found.append(model.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_parameter_may_have_gaps_in_memory(changes):
    wide, tall = tensors([(4, 6), (4, 3, 6, 2)])
    values = [nn.Parameter(wide[:, ::2]), nn.Parameter(tall[:, :, ::3])]
    before = wide[:, 1::2].clone()
    assert_as_torch(values, replace(OPTIONS, **changes))
    assert torch.equal(wide[:, 1::2], before)


@pytest.mark.parametrize("changes", [{}, {"proximal": 0.3, "clip": 1e-3}], ids=str)
def test_parameters_may_be_of_several_types(changes):
    values = [*parameters([(3, 2)]), *parameters([(2, 2)], torch.float64), *parameters([(4,)], torch.bfloat16)]
    assert_as_torch(values, replace(OPTIONS, **changes), rtol=2e-2, atol=1e-2)
    assert [value.dtype for value in values] == [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.usefixtures("devices")
def test_a_parameter_that_is_used_later_begins_with_no_momentum():
    early, late = parameters([(3,), (3,)])
    twin = nn.Parameter(late.detach().clone())
    own, other = (ParameterSGD(values, replace(OPTIONS, clip=None)) for values in ([early, late], [twin]))
    own.minimise(early.sum())
    own.minimise(early.sum() + late.square().sum())
    other.minimise(twin.square().sum())
    assert torch.equal(late, twin)


def test_nothing_to_train_is_no_step():
    frozen, unused = parameters([(3,), (2,)])
    frozen.requires_grad_(False)
    other = torch.ones((), requires_grad=True)
    ParameterSGD([frozen, unused], OPTIONS).minimise(2 * other)
    assert other.grad == 2
    assert unused.grad is None


@pytest.mark.gpu
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_equals_clipping_and_sgd_on_a_gpu(changes):
    shapes = [(4, 3, 2, 2), (5,), (), (3, 4)]
    assert_as_torch([nn.Parameter(value.to("cuda")) for value in tensors(shapes)], replace(OPTIONS, **changes))
    last = tensors([(4, 3, 2, 2)])[0].to("cuda", memory_format=torch.channels_last)
    assert_as_torch([nn.Parameter(last)], replace(OPTIONS, **changes))
