"""Averages of adapters of unequal rank against slow twins, by hand, and in rounds."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from heterofl_flwr.adapters.averaging import ProductMean
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Aggregation, CheckedReply, Plan, width
from tests.federation.tiny import make_app, play

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"


class Adapted(nn.Module):
    """Three inputs, two outputs; at rate 1 an adapter of rank 4, and a bias that all levels share."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        rank = width(4, rate)
        self.layer = nn.Module()
        self.layer.lora_A = nn.ModuleDict({"default": nn.Linear(3, rank, bias=False)})
        self.layer.lora_B = nn.ModuleDict({"default": nn.Linear(rank, 2, bias=False)})
        self.bias = nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.layer.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.lora_B["default"](self.layer.lora_A["default"](x)) + self.bias


def state_of(a: Tensor, b: Tensor, **others: Tensor) -> dict[str, Tensor]:
    return {A: a, B: b, **others}


@dataclass(frozen=True)
class Replies:
    """A global state and what clients of several ranks send."""

    state: dict[str, Tensor]
    subs: list[dict[str, Tensor]]
    weights: list[float]

    def result(self, aggregator, order=None):
        """Return the new global state."""
        aggregation = Aggregation(self.state, aggregator=aggregator)
        for number in range(len(self.subs)) if order is None else order:
            sub = self.subs[number]
            aggregation.add(Plan.between(self.state, sub), sub, weight=self.weights[number])
        return aggregation.result()

    def mean_product(self):
        """Return the mean of B @ A, (outputs, inputs), one entry at a time; the old product where nobody counts."""
        (outputs, _), (_, inputs) = self.state[B].shape, self.state[A].shape
        total = sum(self.weights)
        if not total:
            return (self.state[B].double() @ self.state[A].double()).numpy()
        mean = torch.zeros(outputs, inputs, dtype=torch.float64)
        for sub, weight in zip(self.subs, self.weights, strict=True):
            for output in range(outputs):
                for column in range(inputs):
                    ranks = range(len(sub[A]))
                    own = sum(sub[B][output, rank].item() * sub[A][rank, column].item() for rank in ranks)
                    mean[output, column] += weight * own / total
        return mean.numpy()


@st.composite
def replies(draw):
    """Draw the sizes of a layer, the ranks of the server and of some clients, and what these send."""
    outputs, inputs, rank = (draw(st.integers(1, largest)) for largest in (5, 6, 4))
    ranks = draw(st.lists(st.integers(1, rank), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def factors(own):
        return state_of(torch.randn(own, inputs, generator=generator), torch.randn(outputs, own, generator=generator))

    weights = [draw(st.sampled_from((1.0, 1.0, 0.5, 3.0, 0.0))) for _ in ranks]
    return Replies(factors(rank), [factors(own) for own in ranks], weights)


def product(state):
    return (state[B].double() @ state[A].double()).numpy()


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@given(drawn=replies())
def test_each_prefix_of_the_product_is_the_closest_to_the_mean(drawn):
    mean, new = drawn.mean_product(), drawn.result(ProductMean)
    assume(sum(drawn.weights))
    values = np.linalg.svd(mean, compute_uv=False)
    for rank in range(1, len(new[A]) + 1):
        level = product({A: new[A][:rank], B: new[B][:, :rank]})
        assert_close(np.linalg.norm(mean - level), np.linalg.norm(values[rank:]))


@given(drawn=replies(), data=st.data())
def test_the_order_of_replies_changes_only_signs(drawn, data):
    order = data.draw(st.permutations(range(len(drawn.subs))))
    assert_close(product(drawn.result(ProductMean)), product(drawn.result(ProductMean, order)))


def add(aggregator, state, *clients, rows=(), **options):
    """Return the new state from the factors (A, B) of some clients, given as lists."""
    aggregation = Aggregation(state, rows, aggregator=aggregator)
    for a, b in clients:
        sub = {**state, **state_of(torch.tensor(a), torch.tensor(b))}
        aggregation.add(Plan.between(state, sub), sub, **options)
    return aggregation.result()


def test_directions_that_no_client_has_can_still_learn():
    new = add(
        ProductMean, state_of(torch.randn(3, 5), torch.zeros(4, 3)), ([[1.0, 0, 0, 0, 0]], [[2.0], [0], [0], [0]])
    )
    assert_close(new[B][:, 1:].numpy(), np.zeros((4, 2)))
    assert_close((new[A] @ new[A].T).numpy(), np.eye(3))


def test_a_convolutions_kernel_counts_as_inputs():
    state = {"c.lora_A.x.weight": torch.zeros(2, 1, 3, 3), "c.lora_B.x.weight": torch.zeros(4, 2, 1, 1)}
    sub = {name: torch.randn(own.shape) for name, own in state.items()}
    aggregator = Aggregation(state, aggregator=ProductMean)
    aggregator.add(Plan.between(state, sub), sub)
    (a, b), (new_a, new_b) = sub.values(), aggregator.result().values()
    assert_close((new_b.flatten(1) @ new_a.flatten(1)).numpy(), (b.flatten(1) @ a.flatten(1)).numpy())


@pytest.mark.parametrize("more", [{}, {"longer": torch.zeros(5, 2)}], ids=["alone", "beside a layer of more rows"])
def test_outputs_of_classes_that_nobody_has_stay(more):
    state = state_of(torch.ones(1, 2), torch.ones(3, 1), **more)
    new = add(ProductMean, state, ([[1.0, 1.0]], [[3.0], [3.0], [3.0]]), rows=[B, *more], labels=[1])
    # Rank 1 holds the three rows exactly, for they are multiples of one another.
    assert_close(product(new), [[1, 1], [3, 3], [1, 1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_parameters_go_by_the_counting_mean(dtype):
    state = state_of(torch.rand(2, 3), torch.rand(2, 2), bias=torch.zeros(2))
    state = {name: own.to(dtype) for name, own in state.items()}
    before = {name: own.clone() for name, own in state.items()}
    aggregator = Aggregation(state, aggregator=ProductMean)
    for value in (1.0, 3.0):
        sub = {name: torch.full_like(own, value) for name, own in state.items()}
        aggregator.add(Plan.between(state, sub), sub)
        for own in sub.values():
            own.zero_()  # what the aggregator keeps is its own
    new = aggregator.result()
    assert new["bias"].tolist() == [2.0, 2.0]
    assert {own.dtype for own in new.values()} == {dtype}
    assert all(torch.equal(own, before[name]) for name, own in state.items())


def test_factors_are_kept_where_the_state_is():
    with FakeTensorMode():
        mean = ProductMean(state_of(torch.empty(2, 3, device="cuda"), torch.empty(4, 2, device="cuda")))
        sub = state_of(torch.empty(1, 3), torch.empty(4, 1))
        mean.add(CheckedReply(plan=Plan.between(mean._state, sub), tensors=sub))
        ((kept,),) = mean._factors.values()
        assert {own.device.type for own in kept} == {"cuda"}


@pytest.mark.parametrize("name", ["w", A])
def test_what_has_no_adapters_to_average_is_refused(name):
    with pytest.raises(ConfigError, match="averages LoRA adapters, and none is shared"):
        Aggregation({name: torch.zeros(2, 3)}, aggregator=ProductMean)


MIX, RANKS = "a1-c1", (4, 1)


def expected(state):
    """Return the mean product of two clients that add 1 and 2 to each entry of their ranks."""
    products = [(state[B][:, :rank] + 1 + own) @ (state[A][:rank] + 1 + own) for own, rank in enumerate(RANKS)]
    return (products[0] + products[1]) / 2


@pytest.mark.parametrize(("upload", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 0.2)])
def test_a_round_averages_products(upload, tolerance):
    run = play(make_app(build=Adapted), MIX, 2, build=Adapted, aggregator=ProductMean, upload=upload)
    found, before = run.state, run.before
    torch.testing.assert_close(found[B] @ found[A], expected(before), atol=tolerance, rtol=0)
    torch.testing.assert_close(found["bias"], torch.full((2,), 1.5), atol=tolerance, rtol=0)
