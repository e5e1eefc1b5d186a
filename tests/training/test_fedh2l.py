"""FedH2L on a client: posteriors, divergences, seed steps, the seed set, and the projection of gradients."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn import build_model
from heterofl_flwr.training import DivergedError, TrainingJob, TrainOptions, fedh2l as module
from heterofl_flwr.training.fedh2l import DistillOptions, divergence, join_gradients, learn_from_peers

CLASSES = 4
DRAW = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(20, 1, 6, 6, generator=DRAW), torch.arange(20) % CLASSES
SEEDS = torch.randn(8, 1, 6, 6, generator=DRAW), torch.arange(8) % CLASSES
PEERS = torch.randn(2, 8, CLASSES, generator=DRAW).softmax(2)
OPTIONS = TrainOptions(learning_rate=0.1, batch_size=5, clip=None, mask_fill="none")


def mlp(seed=0):
    torch.manual_seed(seed)
    return build_model("mlp", inputs=(1, 6, 6), classes=CLASSES, hidden=(8,))(1.0)


def job(model):
    return TrainingJob(model=model, split=Split(INPUTS, TARGETS), seed=3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_posteriors_are_distributions_and_change_nothing(temperature):
    model = build_model("cnn", classes=CLASSES, hidden=(4,))(1.0).train()
    found = module.posteriors(model, SEEDS[0], temperature)
    assert found.shape == (8, CLASSES)
    torch.testing.assert_close(found.sum(1), torch.ones(8))
    assert all(module.training for module in model.modules())
    assert module.check_posteriors(found, (8, CLASSES), "node 1") is found
    logits = model.eval()(SEEDS[0])
    torch.testing.assert_close(found, (logits / temperature).softmax(1))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (torch.full((8, 4), 0.25)[:7], r"float32 of shape \(7, 4\), expected torch.float32 of shape \(8, 4\)"),
        (torch.full((8, 4), 0.3), "no distributions: the least entry is 0.3, rows sum to 1.2"),
        (torch.full((8, 4), math.nan), "no distributions: the least entry is nan"),
    ],
)
def test_what_is_no_distribution_names_the_sender(said, fault):
    with pytest.raises(ReplyError, match=f"node 7 sent .*{fault}"):
        module.check_posteriors(said, (8, CLASSES), "node 7")


def test_divergence_is_torch_s_and_finite_where_a_peer_excludes_a_class():
    logits = torch.randn(6, CLASSES)
    peers = torch.randn(3, 6, CLASSES).softmax(2)
    peers[0, 0] = F.one_hot(torch.tensor(1), CLASSES)
    own = (logits / 2).log_softmax(1)
    terms = [F.kl_div(own, peer, reduction="batchmean") for peer in peers]
    torch.testing.assert_close(divergence(logits, peers, 2.0), torch.stack(terms).mean())


@pytest.mark.parametrize("labels", [True, False])
def test_seed_steps_are_a_plain_loop(labels):
    model, twin = mlp(), mlp()
    distill = DistillOptions(steps=6, temperature=2.0, weight=0.5, labels=labels)
    apart = learn_from_peers(job(model), SEEDS, PEERS, OPTIONS, distill)
    assert apart == pytest.approx(divergence(twin(SEEDS[0]), PEERS, 2.0).item(), rel=1e-5)

    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(derive(3, "seed-batches"))
    rows = [some for _ in range(2) for some in torch.randperm(20, generator=order).split(5)]
    for batch in rows[:6]:
        optimizer.zero_grad()
        F.cross_entropy(twin(INPUTS[batch]), TARGETS[batch]).backward()
        own = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
        optimizer.zero_grad()
        logits = twin(SEEDS[0])
        loss = 0.5 * 4 * divergence(logits, PEERS, 2.0)
        (loss + F.cross_entropy(logits, SEEDS[1]) if labels else loss).backward()
        shared = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
        step = join_gradients(own, shared)
        for parameter, part in zip(
            twin.parameters(), step.split([own.numel() for own in twin.parameters()]), strict=True
        ):
            parameter.grad = part.view(parameter.shape)
        optimizer.step()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_without_seed_steps_the_divergence_is_reported_and_nothing_is_trained():
    model, twin = mlp(), mlp()
    apart = learn_from_peers(job(model), SEEDS, PEERS, OPTIONS, DistillOptions(steps=0, temperature=2.0))
    assert apart == pytest.approx(divergence(twin(SEEDS[0]), PEERS, 2.0).item(), rel=1e-5)
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_model_that_changes_its_inputs_leaves_the_seed_examples():
    model, inputs = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), mlp()), SEEDS[0].clone()
    learn_from_peers(job(model), (inputs, SEEDS[1]), PEERS, OPTIONS, DistillOptions(steps=2))
    assert torch.equal(inputs, SEEDS[0])


def test_a_loss_that_is_not_finite_raises_an_error():
    with pytest.raises(ConfigError, match="steps is -1, expected"):
        DistillOptions(steps=-1)
    assert learn_from_peers(job(mlp()), SEEDS, torch.zeros(0, 8, CLASSES), OPTIONS, DistillOptions(steps=2)) == 0
    broken = SEEDS[0] * math.inf, SEEDS[1]
    with pytest.raises(DivergedError, match="the loss of seed step 1 is nan"):
        learn_from_peers(job(mlp()), broken, torch.zeros(0, 8, CLASSES), OPTIONS, DistillOptions())


def test_a_seed_set_has_all_classes_alike():
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 5)
    rows = module.seed_set(Split(torch.zeros(85, 1), targets), 21, 3, seed=0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert targets[rows].bincount().tolist() == [8, 8, 5]
    assert not torch.equal(rows, module.seed_set(Split(torch.zeros(85, 1), targets), 21, 3, seed=1))
    with pytest.raises(ConfigError, match="a seed set of 86 examples is not possible: expected 1 to 85"):
        module.seed_set(Split(torch.zeros(85, 1), targets), 86, 3, seed=0)


SIZE = 6
numbers = st.floats(-10, 10, allow_subnormal=False).map(lambda value: 0.0 if abs(value) < 1e-3 else value)
vectors = st.lists(numbers, min_size=SIZE, max_size=SIZE).map(lambda values: torch.tensor(values, dtype=torch.float64))


def scale(one, two):
    return float(one.norm() * two.norm())


@pytest.mark.parametrize("seed", range(6))
def test_the_step_is_the_nearest_that_opposes_neither(seed):
    """Beside the dual of the problem, by many small steps."""
    draw = torch.Generator().manual_seed(seed)
    private, other = torch.randn(2, SIZE, generator=draw, dtype=torch.float64)
    shared = (0.2 if seed % 2 else 1.0) * (other - 3 * private)
    rows, weights = torch.stack([private / private.norm(), shared / shared.norm()]), torch.zeros(2, dtype=torch.float64)
    for _ in range(2_000):
        weights = (weights - 0.1 * rows @ (private + shared + weights @ rows)).clamp(min=0)
    assert weights.max() > 0
    expected = private + shared + weights @ rows
    torch.testing.assert_close(join_gradients(private, shared), expected, rtol=1e-5, atol=1e-6)


class OnMPS(TorchFunctionMode):
    """Pretend that all tensors are on Apple's MPS, which has no float64, until they are copied to the CPU."""

    def __init__(self):
        super().__init__()
        self.on_cpu = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        on_mps = all(args[0] is not tensor for tensor in self.on_cpu)
        if function == Tensor.device.__get__ and on_mps:
            return torch.device("mps")
        if function is Tensor.double and on_mps:
            raise TypeError("MPS has no float64")
        result = function(*args, **(kwargs or {}))
        if function is Tensor.cpu:
            self.on_cpu.append(result)
        return result


def test_gradients_are_joined_on_a_device_without_float64():
    private, shared = torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 1.0])
    expected = join_gradients(private, shared)
    with OnMPS():
        joined = join_gradients(private.clone(), shared.clone())
    torch.testing.assert_close(joined, expected)


@given(vectors, vectors)
def test_the_step_undoes_neither_gradient(private, shared):
    step = join_gradients(private, shared)
    for own in (private, shared):
        assert float(step.dot(own)) >= -1e-6 * max(scale(private, own), scale(shared, own))
