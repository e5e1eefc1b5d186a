"""The engine ``compile``; but for one test with what torch traces alone, as translating it to C++ takes long."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from weakref import ref

import pytest
import torch
from torch import nn

from heterofl_flwr.nn import CNN
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.training import train, train_together
from heterofl_flwr.training.engines import compile
from tests.training.conftest import OPTIONS, assert_as_plain, frozen, make_jobs, small
from tests.training.test_cohort import Shares, Tied
from tests.training.test_engines import METHODS

# Torch takes this warning of its own back, which does not help where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """Forget what other tests have compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled(monkeypatch) -> list[object]:
    """Return the list of all that is compiled, each as torch has traced it, and run so."""
    found = []

    def keep(traced, inputs):
        found.append(traced)
        return traced.forward

    compiler = torch.compile(compile._call, dynamic=False, backend=keep)
    monkeypatch.setattr(compile, "_compiler", lambda: compiler)
    return found


def train_as_plain(build, options=OPTIONS, tolerance=1e-4, **others):
    jobs, twins = make_jobs(build, **others), make_jobs(build, **others)
    assert_as_plain(jobs, compile.train_compiled(jobs, options), options, twins, tolerance)
    assert all(parameter.is_leaf for job in jobs for parameter in job.model.parameters())


@pytest.mark.release
def test_equals_plain_in_cpp(monkeypatch):
    for name, value in {"compile_threads": 1, "cpp.simdlen": 1, "cpp_cache_precompile_headers": False}.items():
        monkeypatch.setattr(f"torch._inductor.config.{name}", value)  # half the time; the sums are the same
    train_as_plain(lambda: CNN(3, 5, hidden=(8,), norm="sbn", rate=0.5), classes=[None, [0, 1, 2, 3], None, range(4)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (small(norm="sbn"), {}),
        (frozen, {"proximal": 0.1}),
        (lambda: nn.Sequential(small(norm="gn")(), nn.BatchNorm1d(5), nn.Dropout(0.2)), {"clip": 0.1}),
        (Shares, {}),
        (Tied, {}),
    ],
    ids=["static batch norm", "frozen", "statistics and dropout", "shared layer", "tied"],
)
def test_equals_plain_and_serves_all_clients(compiled, build, changes):
    train_as_plain(build, replace(OPTIONS, **changes), classes=[None, [0, 1, 2, 3], None, range(4)])
    assert len(compiled) == 1


@pytest.mark.release
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_each_method_trains_in_two_rounds_as_by_plain(compiled, method):
    ours, twins = METHODS[method](), METHODS[method]()
    for options in (OPTIONS, replace(OPTIONS, learning_rate=0.02)):
        assert_as_plain(ours, train_together(ours, options, engine="compile"), options, twins, 1e-4)


def test_models_that_compute_otherwise_are_compiled_anew(compiled):
    for number, rate in enumerate((1.0, 0.5), 1):
        train_as_plain(lambda rate=rate: nn.Sequential(small(norm="none")(), Scaler(rate)))
        assert len(compiled) == number


def test_beyond_torchs_limit_models_train_as_in_plain(compiled):
    with torch._dynamo.config.patch(recompile_limit=1):
        for rate in (1.0, 0.5):
            train_as_plain(small(norm="gn", rate=rate))
    assert len(compiled) == 1


def test_what_is_compiled_holds_no_model(compiled, split):
    model = small()()
    train(model, split, OPTIONS, seed=1, engine="compile")
    gone = ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert compiled
