"""Training and whole runs where the models' device is not the CPU: nothing mixes devices, and results are the same."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr.nn.penalty import AlignedQuadratic
from heterofl_flwr.training import TrainingJob, train_together
from heterofl_flwr.training.engines import cohort
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import read_tensors
from tests.app.runs import run_rounds
from tests.client.test_distilled_loss import PRESENT, batch, by_message
from tests.second_device.device import NAME, second_device
from tests.training.conftest import OPTIONS
from tests.training.test_engines import METHODS


def test_what_mixes_devices_is_an_error():
    here = torch.ones(3)
    with second_device() as device:
        there = here.to(device)
        for mixed in (
            lambda: there + here,
            lambda: here.sum().add_(there.sum()),
            lambda: here[there.long()],
            lambda: torch.cat([here, there]),
        ):
            with pytest.raises(RuntimeError, match="on one device"):
                mixed()
        with pytest.raises(RuntimeError, match="a generator of the second device"):
            torch.randn(3, device=device, generator=torch.Generator())
        assert (there + here.to(device) + here.sum()).device.type == there[here.long()[:1] * 0].device.type == NAME
        assert there.cpu().tolist() == here.tolist()


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name == "lora" else name for name in METHODS]
)
@pytest.mark.parametrize("engine", ["plain", "cohort", "seats"])
def test_each_method_trains_there_as_on_the_cpu(engine, method):
    twins = METHODS[method]()
    expected = train_together(twins, OPTIONS, engine=engine)
    with second_device() as device:
        jobs = [job_on(device, job) for job in METHODS[method]()]
        results = train_together(jobs, OPTIONS, engine=engine)
        for job, twin, result, other in zip(jobs, twins, results, expected, strict=True):
            assert result.loss == pytest.approx(other.loss, rel=1e-5)
            assert result.accuracy == other.accuracy
            for name, value in job.model.named_parameters():
                assert value.device == device
                torch.testing.assert_close(value.cpu(), twin.model.get_parameter(name), rtol=1e-4, atol=1e-6)


def job_on(device: torch.device, job: TrainingJob) -> TrainingJob:
    form = job.quadratic
    if form is not None:
        tensors = ([value.to(device) for value in values] for values in (form.centers, form.directions))
        form = AlignedQuadratic(form.strength, *tensors)
    return replace(job, model=job.model.to(device), quadratic=form)


RUNS = {
    "cohort": {"engine.name": "cohort", "mix": "a1-b1", "data.split": "non-iid-5"},
    "plain": {"engine.name": "plain", "train.upload": "int8"},
    "distilled": {"train.distill": "all", "distill.label-share": 0.25, "server.stages": "feddyn(0.1)"},
    "depth": {"model.shrink": "depth", "train.exits": "mutual", "model.ensemble": True},
    "robust": {"server.robust": "median", "server.slice-rule": "rolling"},
    "personal": {"server.shared": "*linear.*", "mix": "a1"},
    "fedh2l": {"server.strategy": "fedh2l"},
}


@pytest.mark.parametrize(
    "run", [name if name == "cohort" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_there_is_as_one_on_the_cpu(run, monkeypatch):
    monkeypatch.setattr(cohort, "log_once", pytest.fail)  # clients that train alone, because devices are mixed
    config = {"num-rounds": 1, "train.epochs": 1, "sample.fraction": 1.0, "run.callbacks": "", "mix": "a1-c1"}
    config |= {"model.hidden": "4,8", "model.name": "cnn", "train.batch-size": 50, **RUNS[run]}
    (expected,) = run_rounds({**config, "engine.device": "cpu"}, 4, cohort=4)
    with second_device():
        (progress,) = run_rounds({**config, "engine.device": "auto"}, 4, cohort=4)
    record, twin = progress.record, expected.record
    assert (record.failures, record.evaluate_failures) == ({}, {})
    assert record.train == pytest.approx(twin.train, rel=1e-3)
    assert record.evaluate == pytest.approx(twin.evaluate, rel=1e-3)
    for name, value in progress.state.items():
        torch.testing.assert_close(value, expected.state[name], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("identity")
def test_on_another_device_the_loss_and_the_reply_are_the_same():
    def answer(place):
        torch.manual_seed(0)
        task, examples = by_message(1.0, proximal_mu=0.5), [part.to(place) for part in batch()]
        model = task.model().to(place)
        for _ in range(2):
            loss = task.loss(model, examples, F.cross_entropy, labels=PRESENT, label_share=0.25)
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                with torch.no_grad():
                    parameter -= 0.1 * gradient
        return loss.item(), read_tensors(task.reply(model, num_examples=7).content[messages.ARRAYS])

    expected, tensors = answer("cpu")
    with second_device() as device:
        loss, found = answer(device)
    assert loss == pytest.approx(expected)
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor)
