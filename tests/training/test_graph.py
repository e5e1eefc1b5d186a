import copy
import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from heterofl_flwr.data import Reading, Split
from heterofl_flwr.errors import ConfigError, DataError
from heterofl_flwr.nn import PAPER, Transformer
from heterofl_flwr.nn.transformer import TransformerShape
from heterofl_flwr.training import DivergedError, TrainingJob, train, train_together
from heterofl_flwr.training.engines import graph
from heterofl_flwr.training.engines.graph import CudaRecorder, UncapturableError
from heterofl_flwr.training.engines.plain import log_once
from tests.training.conftest import OPTIONS as SHORT
from tests.training.conftest import Tape, images, same, state

OPTIONS = replace(SHORT, epochs=3)
EXACT = replace(OPTIONS, learning_rate=0.0625)  # the same number in float32, which the recorded step reads
CLOSE = {"cpu": {"rtol": 1e-4, "atol": 1e-5}, "cuda": {"rtol": 1e-2, "atol": 1e-3}}


class Bench:
    """The engine on a device, and how often it has recorded a step."""

    def __init__(self, device: str, monkeypatch) -> None:
        self.device, self.recorded = device, 0
        recorder = CudaRecorder if device == "cuda" else Tape

        class Counting(recorder):
            def record(own, step):
                self.recorded += 1
                return super().record(step)

        monkeypatch.setattr(graph, "CudaRecorder", Counting)

    def train(self, model, split, options, *, classes=None, seed=3):
        job = TrainingJob(model=model, split=split.to(self.device), seed=seed, classes=classes)
        return graph.train_graph([job], options)[0]

    def check_equals_plain(self, model, split, options, *, classes=None, seed=3):
        """Train a copy by ``plain``, then the model, and compare; return both results."""
        twin = copy.deepcopy(model)
        expected = train(twin, split, options, classes=classes, seed=seed)
        result = self.train(model, split, options, classes=classes, seed=seed)
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, **CLOSE[self.device])
        assert result.loss == pytest.approx(expected.loss, rel=CLOSE[self.device]["rtol"])
        assert (result.examples, result.steps) == (expected.examples, expected.steps)
        return result, expected


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request, monkeypatch) -> Bench:
    return Bench(request.param, monkeypatch)


@pytest.fixture
def tape(monkeypatch) -> Bench:
    return Bench("cpu", monkeypatch)


def parent_of(build, device="cpu"):
    """Return a model with dropout and batch norm that has running statistics, in a layout that ``plain`` keeps."""
    model = nn.Sequential(build(norm="gn"), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 5))
    return model.to(device, memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        ({}, None),
        ({"clip": 0.1, "proximal": 0.5}, [0, 1, 2, 3]),
        ({"mask_fill": "-inf"}, [0, 1, 2, 3]),
        ({"augment": "crop-flip"}, None),
    ],
    ids=str,
)
def test_equals_plain(bench, build, split, changes, classes):
    model = build(norm="sbn").to(bench.device)
    bench.check_equals_plain(model, split, replace(OPTIONS, epochs=5, **changes), classes=classes)
    assert bench.recorded > 0


def test_equals_plain_in_bfloat16(bench, build, split):
    model, options = build(norm="gn").to(bench.device), replace(OPTIONS, precision="bfloat16")
    twin, full = copy.deepcopy(model), copy.deepcopy(model)
    expected = train(twin, split, options, seed=3)
    assert bench.train(model, split, options).loss == pytest.approx(expected.loss, rel=1e-2)
    train(full, split, replace(options, precision="float32"), seed=3)
    for name, value in twin.state_dict().items():
        assert (model.state_dict()[name] - value).norm() <= (value - full.state_dict()[name]).norm()
    assert not same(state(model), state(full))


def test_is_plain_bit_for_bit_where_the_layout_is_the_same(tape, build, split):
    """With what is drawn, written to buffers and masked in each step."""
    model = parent_of(build)
    twin = copy.deepcopy(model)
    options = replace(EXACT, proximal=0.1, augment="crop-flip")
    assert tape.train(model, split, options, classes=[0, 1, 2, 3]) == train(
        twin, split, options, classes=[0, 1, 2, 3], seed=3
    )
    assert same(state(model), state(twin))
    assert model[1].num_batches_tracked == 15
    assert tape.recorded == 1


def test_one_recording_serves_clients_of_different_data_masks_seeds_and_learning_rates(bench, build):
    model = build(norm="sbn").to(bench.device)
    received = state(model)
    clients = [
        (images(20, seed=1), [0, 1, 2, 3], 1, OPTIONS),
        (images(20, seed=2), None, 2, replace(OPTIONS, learning_rate=0.2)),
        (images(40, seed=3), torch.tensor([3, 2, 1, 0]), 3, replace(OPTIONS, learning_rate=0.01, epochs=2)),
        (images(5, seed=4), range(5), 4, replace(OPTIONS, augment="crop-flip")),
    ]
    for split, classes, seed, options in clients:
        model.load_state_dict(received)
        bench.check_equals_plain(model, split, options, classes=classes, seed=seed)
    assert bench.recorded == 1


def test_clients_are_alike_bit_for_bit_after_any_others(tape, build, split):
    models = [parent_of(build), parent_of(build)]
    received = state(models[0])
    options = replace(EXACT, proximal=0.5, epochs=5)
    models[0].load_state_dict({name: value + 1 for name, value in received.items()})
    tape.train(models[0], images(30), replace(options, learning_rate=0.5), classes=[0, 1, 2, 3], seed=9)
    models[0].load_state_dict(received)
    # One has recordings, the other begins.
    assert tape.train(models[0], split, options) == tape.train(models[1], split, options)
    assert same(state(models[0]), state(models[1]))


def test_a_shape_is_recorded_once_it_has_come_more_often_than_the_warm_up(tape, build):
    """Batches of 5, 5, 5 and 3: the last shape comes once in each epoch."""
    model, options = build(), replace(OPTIONS, epochs=2)
    for client, recorded in enumerate([1, 2, 2, 2]):
        tape.train(model, images(18), options, seed=client)
        assert tape.recorded == recorded


def test_no_more_than_so_many_shapes_are_recorded(tape, build, monkeypatch):
    monkeypatch.setattr(graph, "MOST_SHAPES", 2)
    model, options = build(), replace(OPTIONS, batch_size=100, epochs=5)
    for number in (6, 7, 8, 9):
        tape.check_equals_plain(model, images(number), options)
    assert tape.recorded == 2


def test_constants_of_a_recording_make_a_new_one(tape, build):
    model, options, recorded = build(norm="gn"), replace(OPTIONS, learning_rate=0.01), 1
    tape.train(model, images(20), options)
    tape.check_equals_plain(model, images(20), replace(options, learning_rate=0.02, epochs=4, augment="crop-flip"))
    assert tape.recorded == recorded
    for change in (
        {"momentum": 0.5},
        {"weight_decay": 0.0},
        {"clip": None},
        {"proximal": 0.1},
        {"mask_fill": "none"},
        {"precision": "bfloat16"},
    ):
        options, recorded = replace(options, **change), recorded + 1
        tape.check_equals_plain(model, images(20), options)
        assert tape.recorded == recorded


def test_models_of_two_levels_have_recordings_of_their_own(bench):
    """As a process of a simulation has them: in turn, again and again."""
    build = PAPER["cifar10"].build(hidden=(8, 8, 8, 8))
    models = [build(rate).to(bench.device) for rate in (1.0, 0.5)]
    for seed in range(4):
        bench.check_equals_plain(models[seed % 2], images(20, seed), OPTIONS, classes=[0, 1, 2, 3], seed=seed)
    assert bench.recorded == 2


def test_a_model_may_get_other_memory_between_rounds(bench, build):
    """As a kept model on a GPU does: the next message takes it back to the CPU, and the client to the GPU again."""
    model = parent_of(build, bench.device)
    received = state(model)
    for seed in range(3):
        model.to_empty(device="cpu").load_state_dict(received)
        model.to(bench.device)
        bench.check_equals_plain(model, images(20, seed), OPTIONS, seed=seed)
    assert bench.recorded == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.linear, "weight", nn.Parameter(model.linear.weight.detach().clone())),
        lambda model: model.linear.weight.requires_grad_(False),
        lambda model: setattr(model, "linear", nn.Linear(16, 4)),
        lambda model: model.double().float().register_buffer("more", torch.zeros(2)),
    ],
    ids=["another parameter", "frozen", "other shape", "a buffer more"],
)
def test_a_model_that_is_no_longer_the_same_is_recorded_anew(tape, build, change):
    model = build(norm="gn")
    tape.train(model, images(20), OPTIONS)
    change(model)
    tape.check_equals_plain(model, images(20), OPTIONS)
    assert tape.recorded == 2


def test_texts_are_read_as_by_plain(bench):
    """Pieces of 8, 8 and 5 words; the shorter one is a shape of its own."""
    torch.manual_seed(0)
    rows = torch.randint(11, (6, 21), generator=torch.Generator().manual_seed(1))
    text = Split(rows, rows, reading=Reading(hides_as=11, share=0.3, length=8))
    shape = TransformerShape(embedding=8, heads=2, hidden=8, layers=1, sequence=8, dropout=0.2)
    model = Transformer(11, shape).to(bench.device)
    bench.check_equals_plain(model, text, replace(OPTIONS, batch_size=2), classes=[1, 2, 3])
    assert bench.recorded == 2


def test_a_loss_that_is_not_finite_raises_the_error_of_plain(bench, build, split):
    model = build(norm="none").to(bench.device)
    received, wild = state(model), replace(OPTIONS, learning_rate=1e6, epochs=50, clip=None)
    with pytest.raises(DivergedError) as expected:
        train(copy.deepcopy(model), split, wild, seed=3)
    with pytest.raises(DivergedError) as found:
        bench.train(model, split, wild)
    assert str(found.value) == str(expected.value)
    assert model not in graph._STEPS
    assert same(state(model), received)
    bench.check_equals_plain(model, split, OPTIONS)


@pytest.mark.parametrize("trained", [False, True], ids=["at once", "later"])
def test_the_model_is_as_usable_after_an_error_as_before(bench, build, split, trained):
    model = parent_of(build, bench.device)
    if trained:
        bench.train(model, split, OPTIONS)
    before = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match="do not exist: expected 0 to 4"):
        bench.train(model, split, OPTIONS, classes=[7])
    for name, value in model.state_dict().items():
        address, stride, expected = before[name]
        assert (value.data_ptr(), value.stride()) == (address, stride)
        assert torch.equal(value, expected)
    bench.check_equals_plain(model, split, OPTIONS)


class Replacing(nn.Module):
    """Counts its calls in a buffer that it makes anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x


class Deciding(nn.Module):
    """Does what a graph cannot hold: decides by a value."""

    def forward(self, x):
        return x if float(x.detach().sum()) > 1e9 else 1 * x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Replacing, "1.calls became another tensor instead of changing in place"),
        (Deciding, "operation not permitted when stream is capturing"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_left_to_plain(bench, build, split, caplog, layer, reason):
    log_once.cache_clear()
    model = nn.Sequential(build(norm="gn"), layer()).to(bench.device)
    for _ in range(2):
        bench.check_equals_plain(model, split, OPTIONS)
    assert bench.recorded == 1  # it was tried once
    assert layer is Deciding or model[1].calls == 30
    expected = "a training step of a Sequential cannot be a CUDA graph, so engine plain trains it: "
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(expected)
    assert reason in caplog.messages[0]


def test_recordings_live_as_long_as_their_model(bench, build, split):
    model = build().to(bench.device)
    bench.train(model, split, OPTIONS)
    step = weakref.ref(graph._STEPS[model])
    del model
    gc.collect()
    assert step() is None


def test_rounds_leave_nothing_behind(bench, build):
    """Neither tensors nor, on a GPU, memory."""
    model = parent_of(build, bench.device)

    def held(seed):
        bench.train(model, images(18, seed), OPTIONS, classes=[0, 1, 2, 3], seed=seed)
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return tensors, torch.cuda.memory_allocated() if bench.device == "cuda" else 0

    first = [held(seed) for seed in range(2)][-1]
    assert [held(seed) for seed in range(2, 4)] == [first] * 2


def test_a_cpu_raises_an_error(build, split):
    model, received = build(), state(build())
    with pytest.raises(ConfigError, match=r"engine is graph, and the model is on cpu.*use engine auto or plain"):
        train(model, split, OPTIONS, seed=1, engine="graph")
    assert same(state(model), received)


@pytest.mark.gpu
def test_is_an_engine_on_a_gpu(build, split):
    jobs = [TrainingJob(model=build(norm="gn").to("cuda"), split=split, seed=3) for _ in range(2)]
    results = train_together(jobs, OPTIONS, engine="graph")
    assert results[0].loss == pytest.approx(train(build(norm="gn").to("cuda"), split, OPTIONS, seed=3).loss, rel=1e-2)


class FakeCuda:
    """What ``CudaRecorder`` asks of torch, and what becomes of it."""

    def __init__(self, monkeypatch, fails: bool) -> None:
        self.calls: list[object] = []
        self.outer, self.inner = self._stream("outer"), self._stream("inner")
        self.fails = fails
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.inner)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.outer)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(
            torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.calls.append("replay"))
        )
        monkeypatch.setattr(torch.cuda, "graph", self._capture)

    def _stream(self, name):
        wait = lambda other: self.calls.append(f"{name} waits for {other.name}")  # noqa: E731
        return SimpleNamespace(name=name, device="cuda:0", wait_stream=wait)

    @contextmanager
    def _on(self, stream):
        self.calls.append(f"on {stream.name}")
        yield

    @contextmanager
    def _capture(self, graph, **options):
        self.calls.append(options)
        try:
            yield
        finally:
            if self.fails:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore lines")


def make_recorder(fake: FakeCuda) -> CudaRecorder:
    assert fake.calls == []
    return CudaRecorder(torch.device("cuda"))


def test_steps_run_on_a_stream_of_their_own_and_share_a_pool(monkeypatch):
    fake = FakeCuda(monkeypatch, fails=False)
    recorder = make_recorder(fake)
    with recorder.place():
        replay = recorder.record(lambda: fake.calls.append("step"))
        replay()
    options = {"pool": "pool", "stream": fake.inner, "capture_error_mode": "thread_local"}
    waits = ["inner waits for outer", "outer waits for inner"]
    assert fake.calls == [waits[0], "on inner", options, "step", "replay", waits[1]]


@pytest.mark.parametrize("fails", [False, True], ids=["torch goes on", "torch fails once more"])
@pytest.mark.parametrize(
    ("error", "expected", "match"),
    [
        (RuntimeError("not permitted\nmore"), UncapturableError, "^not permitted$"),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError, "no room"),
        (DataError("targets"), DataError, "targets"),
    ],
    ids=["runtime", "memory", "data"],
)
def test_a_capture_that_fails_says_why(monkeypatch, fails, error, expected, match):
    recorder = make_recorder(FakeCuda(monkeypatch, fails))
    try:
        raise KeyError("another error that is being handled")
    except KeyError:
        with pytest.raises(expected, match=match):
            recorder.record(Mock(side_effect=error))
    if fails:  # at its end alone
        with pytest.raises(UncapturableError, match=r"^CUDA error: .* during capture$"):
            recorder.record(lambda: None)
