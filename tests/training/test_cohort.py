"""Every test that says that clients trained together fails if they silently trained alone: see ``together``."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.data import Split
from heterofl_flwr.errors import DataError
from heterofl_flwr.nn import PreResNet, Transformer
from heterofl_flwr.nn.preresnet import BottleneckPreResNet
from heterofl_flwr.nn.transformer import TransformerShape
from heterofl_flwr.training import TrainingJob, TrainOptions, train, train_together
from heterofl_flwr.training.engines import cohort, joint
from heterofl_flwr.training.engines.cohort import Cohort, train_cohort
from heterofl_flwr.training.engines.joint import Vmapped, Wide
from heterofl_flwr.training.engines.plain import train_plain
from tests.training.cohorts import OPTIONS, Double, assert_as_plain, exact, images, jobs, small, state

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[Wide, Vmapped], ids=["wide", "vmap"])
def together(request, monkeypatch) -> Callable[..., object]:
    """Return a function that trains clients in one way, and only in that."""

    def forbidden(*args: object) -> None:
        raise AssertionError("trained alone")

    def run(clients: list[TrainingJob], options: TrainOptions) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(cohort, "WAYS", {"cpu": (request.param,), "cuda": (request.param,)})
            patch.setattr(cohort, "train_plain", forbidden)
            return train_cohort(clients, options)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"clip": 0.1},
        {"clip": None},
        {"proximal": 0.5, "clip": 0.1},
        {"proximal": 0.5, "momentum": 0.0},
        {"batch_size": 1},
        {"batch_size": 11},
        {"batch_size": 100},
        {"augment": "crop-flip"},
    ],
    ids=str,
)
def test_equals_plain(together, changes):
    options = replace(OPTIONS, **changes)
    build = exact(small(norm="gn", rate=0.5))
    clients = jobs(build)
    assert_as_plain(clients, together(clients, options), options, jobs(build))


@pytest.mark.parametrize("fill", ["zero", "-inf", "none"])
def test_each_client_has_its_own_classes(together, fill):
    options = replace(OPTIONS, mask_fill=fill)
    classes = [None, [0, 1, 2, 3], torch.tensor([4, 3, 2, 1, 0]), range(4)]
    build = exact(small(norm="gn"))
    clients = jobs(build, classes=classes)
    assert_as_plain(clients, together(clients, options), options, jobs(build, classes=classes))
    rows = [job.model.model.linear.bias.detach()[4] for job in clients]
    assert [float(row) == 0 for row in rows] == [False, fill != "none", False, fill != "none"]


class Sequence1d(nn.Module):
    """A convolution over sequences, with its own code between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.slope = nn.PReLU(4)
        self.shift = nn.Conv1d(4, 4, 1, groups=2, bias=False)
        self.linear = nn.Linear(4 * 31, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.slope(self.conv(x.flatten(2)))
        h = F.avg_pool1d(h + torch.sigmoid(self.shift(h)) * h, 2)
        return self.linear(h.view(h.size(0), -1))


MODELS = {
    **{norm: small(norm=norm, rate=0.5) for norm in ("none", "in", "gn", "ln", "sbn")},
    "preresnet": lambda: PreResNet(3, 5, hidden=(4, 4, 8, 8)),
    "bottleneck": lambda: BottleneckPreResNet(3, 5, blocks=(1, 1), hidden=(4, 8), norm="gn"),
    "conv1d": Sequence1d,
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_with_any_model_that_fits(together, name):
    clients, options = jobs(exact(MODELS[name])), replace(OPTIONS, proximal=0.1)
    assert_as_plain(clients, together(clients, options), options, jobs(exact(MODELS[name])))


@pytest.mark.parametrize("name", MODELS)
def test_is_near_plain_in_float32(together, name):
    """As a rule they are equal to six digits; the bound leaves room for a kink."""
    clients, twins, received = jobs(MODELS[name]), jobs(MODELS[name]), jobs(MODELS[name])
    results, expected = together(clients, OPTIONS), train_plain(twins, OPTIONS)
    for one, other, before in zip(clients, twins, received, strict=True):
        ends = [nn.utils.parameters_to_vector(job.model.parameters()) for job in (one, other, before)]
        assert (ends[0] - ends[1]).norm() < 0.02 * (ends[1] - ends[2]).norm()
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=1e-3)


@given(
    sizes=st.lists(st.integers(1, 13), min_size=2, max_size=4),
    batch_size=st.integers(1, 6),
    epochs=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.9]),
    clip=st.sampled_from([None, 0.1]),
)
def test_equals_plain_whatever_the_sizes(sizes, batch_size, epochs, momentum, clip):
    def build():
        return Double(nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)))

    def clients():
        return jobs(build, sizes, split=lambda number, seed: images(number, seed, 1))

    options = TrainOptions(learning_rate=0.05, epochs=epochs, batch_size=batch_size, momentum=momentum, clip=clip)
    ours = clients()
    assert_as_plain(ours, Cohort(ours, options, Wide).train(), options, clients())


def test_equals_plain_in_bfloat16():
    options = replace(OPTIONS, precision="bfloat16")
    clients, twins = jobs(MODELS["mlp"]), jobs(MODELS["mlp"])
    results = Cohort(clients, options, Wide).train()
    expected = train_plain(twins, options)
    for one, other in zip(clients, twins, strict=True):
        for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=0.02)


def test_float64_decides_where_rounding_makes_float32_differ(together, monkeypatch):
    monkeypatch.setitem(joint.TOLERANCE, torch.float32, -1.0)
    clients, twins = jobs(small()), jobs(small())
    results, expected = together(clients, OPTIONS), train_plain(twins, OPTIONS)
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=1e-3)


def test_inputs_of_different_shapes_go_in_turns(together):
    def split(number, seed):
        side = 8 + 4 * (seed % 2)
        return replace(images(number, seed), inputs=torch.randn(number, 3, side, side).mul(seed + 1))

    def clients():
        torch.manual_seed(5)
        return jobs(exact(small(norm="gn")), split=split)

    ours = clients()
    assert_as_plain(ours, together(ours, OPTIONS), OPTIONS, clients())


def test_clients_with_an_odd_last_batch_soon_go_with_the_others_again(monkeypatch):
    taken = []
    step = Cohort._step
    monkeypatch.setattr(Cohort, "_step", lambda self, *args: taken.append(args[2]) or step(self, *args))
    Cohort(jobs(small(norm="gn"), (20, 23, 20, 10)), OPTIONS, Wide).train()
    # In each of two epochs 4, 5, 4 and 2 batches, all of five but the fifth.
    assert taken == [[0, 1, 2, 3]] * 4 + [[1]] + [[0, 1, 2]] * 4 + [[1]]


def test_frozen_and_unused_parameters_stay_as_they_are(together):
    def build():
        model = small(norm="gn")().double()
        model.linear.weight.requires_grad_(False)
        model.features.conv1.bias.requires_grad_(False)
        model.unused = nn.Linear(3, 2, dtype=torch.float64)
        return Double(model)

    clients, received = jobs(build), [state(job) for job in jobs(build)]
    options = replace(OPTIONS, proximal=0.1)
    assert_as_plain(clients, together(clients, options), options, jobs(build))
    for job, before in zip(clients, received, strict=True):
        same = {name for name, value in job.model.state_dict().items() if torch.equal(value, before[name])}
        stayed = {"linear.weight", "features.conv1.bias", "unused.weight", "unused.bias"}
        assert same == {f"model.{name}" for name in stayed}


def test_parameters_stay_the_same_tensors_in_the_same_layout(together):
    clients = jobs(small())
    clients[1].model.to(memory_format=torch.channels_last)
    earlier = [job.model.state_dict() for job in clients]
    places = [{name: (value.data_ptr(), value.stride()) for name, value in own.items()} for own in earlier]
    clients[0].model.eval()
    clients[0].model.linear.bias.grad = torch.ones(5)
    together(clients, OPTIONS)
    for job, place, own in zip(clients, places, earlier, strict=True):
        assert {name: (value.data_ptr(), value.stride()) for name, value in job.model.state_dict().items()} == place
        assert all(torch.equal(own[name], value) for name, value in job.model.state_dict().items())
        assert all(parameter.grad is None for parameter in job.model.parameters())
        assert all(module.training for module in job.model.modules())


def test_global_random_state_is_as_before(together):
    clients = jobs(small())
    before = torch.get_rng_state()
    together(clients, replace(OPTIONS, augment="crop-flip"))
    assert torch.equal(before, torch.get_rng_state())


def test_time_is_shared_out_by_steps():
    results = train_cohort(jobs(small()), OPTIONS)
    each = [result.seconds / result.steps for result in results]
    assert each == pytest.approx([each[0]] * 4)
    assert each[0] > 0


def test_constant_buffers_are_used(together):
    def build():
        return Double(MODELS["mlp"]().append(Add()))

    clients = jobs(build)
    assert_as_plain(clients, together(clients, OPTIONS), OPTIONS, jobs(build))


class Add(nn.Module):
    """Adds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amount", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amount


def test_a_transformer_without_dropout_trains_under_vmap():
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = TransformerShape(sequence=6, embedding=8, hidden=8, heads=2, layers=2, dropout=0.0)
            self.transformer = Transformer(7, shape)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.transformer(tokens).mean(2)

    def split(number, seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(7, (number, 6), generator=generator)
        return Split(tokens, tokens[:, 0])

    clients, twins = jobs(exact(Classifier), split=split), jobs(exact(Classifier), split=split)
    assert_as_plain(clients, Cohort(clients, OPTIONS, Vmapped).train(), OPTIONS, twins)


def test_one_client_is_trained_as_plain_does():
    assert train_cohort(jobs(small(), (12,)), OPTIONS) == train_plain(jobs(small(), (12,)), OPTIONS)
    job = jobs(small(), (12,))[0]
    assert train(job.model, job.split, OPTIONS, seed=job.seed, engine="cohort").steps == 6


def test_nobody_is_trained_as_nobody():
    assert train_cohort([], OPTIONS) == []


def test_an_empty_split_is_refused_before_anyone_is_trained():
    clients = jobs(small(), (10, 0))
    before = state(clients[0])
    with pytest.raises(DataError, match="there are no examples to train on"):
        train_together(clients, OPTIONS, engine="cohort")
    assert all(torch.equal(value, before[name]) for name, value in state(clients[0]).items())


@pytest.mark.parametrize(
    ("classes", "shift", "changes", "message"),
    [
        ([None, [7]], 0, {}, "do not exist: expected 0 to 4"),
        ([None, [7]], 0, {"mask_fill": "none"}, "do not exist: expected 0 to 4"),
        (None, 5, {}, "targets do not fit 5 classes"),
    ],
)
def test_what_plain_refuses_is_refused_in_its_words(classes, shift, changes, message):
    def split(number, seed):
        own = images(number, seed)
        return replace(own, targets=own.targets + seed * shift)

    clients = jobs(small(), (10, 10), classes=classes, split=split)
    before = state(clients[1])
    with pytest.raises(DataError, match=message):
        train_cohort(clients, replace(OPTIONS, **changes))
    assert all(torch.equal(value, before[name]) for name, value in state(clients[1]).items())


def test_training_together_loads_no_compiler_of_torchs():
    code = """if True:
        import sys, torch
        from heterofl_flwr.data import Split
        from heterofl_flwr.training import TrainOptions, TrainingJob
        from heterofl_flwr.training.engines.joint import Vmapped, Wide
        from heterofl_flwr.training.engines.cohort import Cohort
        split = Split(torch.ones(3, 2), torch.tensor([0, 1, 1]))
        for way in (Wide, Vmapped):
            jobs = [TrainingJob(model=torch.nn.Linear(2, 2), split=split, seed=seed) for seed in range(2)]
            Cohort(jobs, TrainOptions(learning_rate=0.1), way).train()
        print(*{"torch._dynamo", "flwr", "torchvision"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_on_a_gpu(together, name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def clients(build):
        made = jobs(build)
        return [replace(job, model=job.model.to("cuda"), split=job.split.to("cuda")) for job in made]

    ours = clients(exact(MODELS[name]))
    assert_as_plain(ours, together(ours, OPTIONS), OPTIONS, clients(exact(MODELS[name])), tolerance=1e-7)
    results = together(clients(MODELS[name]), OPTIONS)
    expected = train_plain(clients(MODELS[name]), OPTIONS)
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=0.05)
