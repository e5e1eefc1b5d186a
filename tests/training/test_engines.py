"""What holds for every engine: the result of a slow twin, and nothing else touched; and the choice among engines."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from heterofl_flwr.adapters import lora
from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.data import Split
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.inner_widths import Nested
from heterofl_flwr.nn.penalty import Quadratic
from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from heterofl_flwr.training import ENGINES, TrainingJob, TrainOptions, train, train_together
from heterofl_flwr.training.batches import count_steps, steps_per_epoch, training_batches, training_epochs
from heterofl_flwr.training.engines import choose
from heterofl_flwr.training.engines.choose import MOST_ON_CPU, fastest_engine
from heterofl_flwr.training.engines.cohort import Cohort
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.inplace_distillation import nested_loss
from tests.federation.tiny import equal
from tests.training.conftest import (
    OPTIONS,
    SIZES,
    assert_as_plain,
    exact,
    frozen,
    images,
    make_jobs,
    make_text,
    small,
    state,
    train_seated,
    train_slowly,
)

RUNNERS = {"plain": train_plain, "cohort": lambda jobs, options: Cohort(jobs, options).train(), "seats": train_seated}


@pytest.fixture(params=RUNNERS)
def run(request) -> Callable[..., object]:
    """Return an engine; those other than plain fail here where they would train clients alone."""
    return RUNNERS[request.param]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"masked": True},
        {"momentum": 0.0, "weight_decay": 0.0, "batch_size": 1},
        {"clip": None, "masked": True, "batch_size": 11},
        {"proximal": 0.5, "clip": 0.1, "masked": True, "batch_size": 100},
        {"mask_fill": "-inf", "masked": True},
        {"mask_fill": "none", "masked": True},
        {"shares": (0.1, 1.0, 0.01, 0.75)},
        {"sizes": (1, 13, 2, 7), "batch_size": 3, "momentum": 0.0},
        {"sizes": (5, 1, 1, 6), "clip": 0.1, "epochs": 3},
    ],
    ids=str,
)
def test_equals_the_slow_twin(run, changes):
    """In float64, where rounding moves no activation across zero; each client has its own classes."""
    changes = dict(changes)
    masked, shares = changes.pop("masked", False), changes.pop("shares", (1.0,) * 4)
    sizes, options = changes.pop("sizes", SIZES), replace(OPTIONS, **changes)
    classes = [None, [0, 1, 2, 3], torch.tensor([4, 3, 2, 1, 0]), range(4)] if masked else None
    build = exact(small(norm="gn", rate=0.5))
    jobs, twins = (
        [replace(job, step_share=own) for job, own in zip(make_jobs(build, sizes, classes), shares, strict=True)]
        for _ in range(2)
    )
    for job, twin, result in zip(jobs, twins, run(jobs, options), strict=True):
        own = None if twin.classes is None else [int(one) for one in twin.classes]
        losses, sizes, correct = train_slowly(
            twin.model, twin.split, options, own, twin.seed, count_steps(twin, options)
        )
        for name, value in twin.model.state_dict().items():
            torch.testing.assert_close(job.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        assert (result.examples, result.steps) == (len(twin.split), len(sizes))
        assert result.accuracy == correct / sum(sizes)
        mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
        assert result.loss == pytest.approx(mean, rel=1e-4)
        untouched = own is not None and 4 not in own and options.mask_fill != "none"
        assert (job.model.model.linear.bias[4].item() == 0) == untouched


def test_frozen_and_unused_parameters_stay_as_they_are(run):
    jobs, received = make_jobs(frozen), [state(job.model) for job in make_jobs(frozen)]
    run(jobs, replace(OPTIONS, proximal=0.1))
    for job, before in zip(jobs, received, strict=True):
        stayed = {name for name, value in job.model.state_dict().items() if torch.equal(value, before[name])}
        assert stayed == {"linear.weight", "features.conv1.bias", "unused.weight", "unused.bias"}


def test_parameters_stay_the_same_tensors_in_the_same_layout(run):
    jobs = make_jobs(small())
    jobs[1].model.to(memory_format=torch.channels_last)
    jobs[0].model.eval().linear.bias.grad = torch.ones(5)
    earlier = [job.model.state_dict() for job in jobs]
    places = [{name: (value.data_ptr(), value.stride()) for name, value in own.items()} for own in earlier]
    run(jobs, OPTIONS)
    for job, place, own in zip(jobs, places, earlier, strict=True):
        assert {name: (value.data_ptr(), value.stride()) for name, value in job.model.state_dict().items()} == place
        assert equal(own, job.model.state_dict())
        assert all(parameter.grad is None for parameter in job.model.parameters())
        assert all(module.training for module in job.model.modules())


@pytest.mark.parametrize("engine", ["plain", "cohort", "seats"])
def test_global_random_state_is_as_before(engine):
    jobs = make_jobs(lambda: nn.Sequential(small()(), nn.Dropout(0.5)))
    before = torch.get_rng_state()
    train_together(jobs, replace(OPTIONS, augment="crop-flip"), engine=engine)
    assert torch.equal(before, torch.get_rng_state())


@given(
    examples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    share=st.floats(0.001, 1.0),
    words=st.none() | st.integers(1, 20),
)
def test_the_batches_of_a_share_are_the_first_of_all(examples, batch_size, epochs, share, words):
    options = TrainOptions(learning_rate=1.0, epochs=epochs, batch_size=batch_size)
    own = make_text(examples, words) if words else Split(torch.arange(examples).float(), torch.arange(examples))
    job = TrainingJob(model=nn.Identity(), split=own, seed=1, step_share=share)
    whole = [batch for epoch in training_epochs(replace(job, step_share=1.0), options) for batch in epoch]
    part = [batch for epoch in training_epochs(job, options) for batch in epoch]
    single = list(training_batches(own, options, torch.Generator()))
    assert len(single) == steps_per_epoch(own, batch_size)
    assert len(whole) == len(single) * epochs
    assert len(part) == count_steps(job, options)
    assert len(whole) * share <= len(part) < len(whole) * share + 1
    for one, other in zip(part, whole, strict=False):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_share_in_decimals_is_rounded_up_exactly():
    job = TrainingJob(model=nn.Identity(), split=images(30, 0), seed=1, step_share=0.07)
    assert job.limit_steps(100) == 7  # in floats 0.07 * 100 is over 7
    assert job.limit_steps(101) == 8
    assert replace(job, step_share=5 / 6).limit_steps(6) == 5
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"step_share is .*; expected a number over 0 and up to 1"):
            replace(job, step_share=share)


def test_an_empty_split_raises_an_error_before_anyone_is_trained():
    jobs = make_jobs(small(), (10, 0))
    before = state(jobs[0].model)
    for engine in ("plain", "cohort", "seats"):
        with pytest.raises(DataError, match="there are no examples to train on"):
            train_together(jobs, OPTIONS, engine=engine)
    assert equal(state(jobs[0].model), before)


@pytest.mark.parametrize("engine", ["plain", "cohort", "seats"])
@pytest.mark.parametrize("fill", ["zero", "none"])
def test_classes_that_the_model_lacks_are_an_error(engine, fill):
    jobs = make_jobs(small(), (10, 10), classes=[[0, 1], [7]])
    before = state(jobs[1].model)
    with pytest.raises(DataError, match=r"out of range .*: expected whole numbers from 0 to 4"):
        train_together(jobs, replace(OPTIONS, mask_fill=fill), engine=engine)
    assert equal(state(jobs[1].model), before)


def test_engines_have_names(monkeypatch):
    model, split = nn.Linear(2, 2), Split(torch.ones(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ConfigError, match="engine is 'warp'; expected auto or one of plain"):
        train(model, split, OPTIONS, seed=1, engine="warp")
    monkeypatch.setitem(ENGINES, "mine", lambda jobs, options: [(job, options) for job in jobs])
    job, options = train(model, split, OPTIONS, classes=[1], seed=1, engine="mine")
    assert (job.model, job.classes, job.seed, options) == (model, [1], 1, OPTIONS)


def test_large_models_train_together_on_a_gpu_only(monkeypatch):
    with torch.device("meta"):
        small, large = (nn.Linear(MOST_ON_CPU // 2, 2, bias=False), nn.Linear(MOST_ON_CPU // 2 + 1, 2, bias=False))
    for device, engine in (("cpu", "plain"), ("cuda", "cohort")):
        monkeypatch.setattr(choose, "device_of", lambda model, device=device: torch.device(device))
        assert fastest_engine(small) == "cohort"
        assert fastest_engine(large) == engine


def hooked(kind):
    layer = nn.Linear(2, 2)
    getattr(layer.weight if kind == "post_accumulate_grad" else layer, f"register_{kind}_hook")(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "engine"),
    [
        (nn.Dropout(0.1), "plain"),
        (nn.Dropout(0.0), "cohort"),
        (nn.BatchNorm1d(2), "plain"),
        (nn.BatchNorm1d(2, track_running_stats=False), "cohort"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "plain"),
        *((hooked(kind), "plain") for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")),
        (hooked("post_accumulate_grad"), "plain"),
    ],
)
def test_models_that_cannot_train_together_train_alone(layer, engine):
    assert fastest_engine(nn.Sequential(nn.Linear(2, 2), layer)) == engine


UNEQUAL = (12, 8)


def nested_jobs() -> list[TrainingJob]:
    """Return clients whose steps train the smaller model inside too."""
    jobs = make_jobs(small(norm="gn"), UNEQUAL)
    inner = small(norm="gn", rate=0.5)
    return [replace(job, model=Nested(job.model, [inner()], "all"), joint_loss=nested_loss) for job in jobs]


def feddyn_jobs() -> list[TrainingJob]:
    """Return clients with FedDyn's penalty."""
    jobs = make_jobs(exact(small(norm="gn", rate=0.5)), UNEQUAL)
    named = [{name: torch.full_like(value, 0.1) for name, value in job.model.named_parameters()} for job in jobs]
    return [
        replace(job, quadratic=Quadratic(0.1, center=tensors, direction=tensors).aligned(job.model))
        for job, tensors in zip(jobs, named, strict=True)
    ]


def lora_jobs() -> list[TrainingJob]:
    """Return clients that train adapters."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["1", "3"]))
    return make_jobs(partial(lora(adapted), 0.5), UNEQUAL)


def transformer_jobs() -> list[TrainingJob]:
    """Return clients with texts of unequal numbers of rows, and dropout."""
    shape = TransformerShape(sequence=8, embedding=8, hidden=8, heads=2, layers=1)
    return make_jobs(lambda: Transformer(8, shape), UNEQUAL, split=lambda rows, seed: make_text(rows, 12 + seed))


METHODS = {
    "cnn": lambda: make_jobs(exact(small(norm="sbn", rate=0.5)), UNEQUAL),
    "preresnet18": lambda: make_jobs(
        exact(partial(build_model("preresnet18", classes=5, hidden=(4,) * 4), 0.5)), UNEQUAL
    ),
    "transformer": transformer_jobs,
    "lora": lora_jobs,
    "distilled": nested_jobs,
    "feddyn": feddyn_jobs,
}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name == "lora" else name for name in METHODS]
)
@pytest.mark.parametrize("engine", ["cohort", "seats"])
def test_each_method_trains_together_as_alone(method, engine, channels_first):
    """In two rounds; clients have unequal numbers of examples, and last batches of other sizes."""
    ours, twins = METHODS[method](), METHODS[method]()
    for options in (OPTIONS, replace(OPTIONS, learning_rate=0.02)):
        results = train_seated(ours, options) if engine == "seats" else train_together(ours, options, engine=engine)
        assert_as_plain(ours, results, options, twins, 0.0 if engine == "seats" else 1e-10)
