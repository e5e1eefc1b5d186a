"""The losses of early exits, by hand, and training with them."""

import math

import pytest
import torch

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn import build_model, with_exits
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from heterofl_flwr.training.exit_losses import deepest_loss, mutual_loss, ramp_up
from heterofl_flwr.training.inplace_distillation import nested_loss

LOGITS = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(4.0), 0.0]])]
"""Three exits whose posteriors are (1/4, 3/4), (1/2, 1/2) and (4/5, 1/5)."""
POSTERIORS = [(0.25, 0.75), (0.5, 0.5), (0.8, 0.2)]
TARGETS = torch.tensor([0])


def divergence(teacher, own):
    return sum(p * math.log(p / q) for p, q in zip(teacher, own, strict=True))


def softened(posterior, temperature):
    powers = [p ** (1 / temperature) for p in posterior]
    return [p / sum(powers) for p in powers]


def test_depthfls_loss_is_the_papers():
    cross_entropies = -math.log(0.25) - math.log(0.5) - math.log(0.8)
    pairs = [(one, other) for one in POSTERIORS for other in POSTERIORS if one is not other]
    expected = cross_entropies + 0.7 * sum(divergence(*pair) for pair in pairs) / 2
    assert mutual_loss(LOGITS, TARGETS, weight=0.7).item() == pytest.approx(expected)
    assert mutual_loss(LOGITS[:1], TARGETS).item() == pytest.approx(-math.log(0.25))


def test_scalefls_loss_is_the_papers():
    teacher = softened(POSTERIORS[-1], 3)
    apart = [0.5 * 9 * divergence(teacher, softened(own, 3)) for own in POSTERIORS[:2]]
    expected = (-math.log(0.25) + apart[0]) + 2 * (-math.log(0.5) + apart[1]) + 3 * -math.log(0.8)
    assert deepest_loss(LOGITS, TARGETS, weight=0.5, temperature=3).item() == pytest.approx(expected / 6)
    assert deepest_loss(LOGITS[:1], TARGETS).item() == pytest.approx(-math.log(0.25))


def test_fjords_loss_is_the_papers():
    teacher, smaller = softened(POSTERIORS[-1], 3), POSTERIORS[:2]
    apart = [0.25 * -math.log(own[0]) + 0.75 * 9 * divergence(teacher, softened(own, 3)) for own in smaller]
    found = nested_loss(LOGITS, TARGETS, weight=0.5, temperature=3, label_share=0.25)
    assert found.item() == pytest.approx(-math.log(0.8) + 0.5 * sum(apart))
    assert nested_loss(LOGITS, TARGETS, weight=0.0).item() == pytest.approx(-math.log(0.8))


@pytest.mark.parametrize("loss", [mutual_loss, deepest_loss])
def test_a_class_that_a_client_lacks_does_not_count(loss):
    absent = torch.tensor([[-math.inf]])
    masked = [torch.cat([own, absent], 1) for own in LOGITS]
    torch.testing.assert_close(loss(masked, TARGETS, weight=0.7), loss(LOGITS, TARGETS, weight=0.7))


@pytest.mark.parametrize("loss", [mutual_loss, deepest_loss, nested_loss])
@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_not_finite_show_in_the_loss(loss, place):
    logits = LOGITS[:2]
    logits[place] = torch.full((1, 2), math.nan)
    assert loss(logits, TARGETS).isnan()


@pytest.mark.parametrize("loss", [mutual_loss, deepest_loss])
def test_teachers_get_no_gradient(loss):
    logits = [torch.tensor([[1.0, 2.0, -math.inf]], requires_grad=True) for _ in range(2)]
    loss(logits, TARGETS, weight=3.0).backward()
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits[1], TARGETS), logits[1])
    share = 1 if loss is mutual_loss else 2 / 3  # equal exits do not diverge, and deeper ones weigh more
    torch.testing.assert_close(logits[1].grad, share * plain)
    assert all(own.grad.isfinite().all() for own in logits)


def test_the_divergence_grows_as_in_depthfls_baseline():
    assert [ramp_up("mutual", 1 + done, 300) for done in (0, 150, 300, 999)] == pytest.approx(
        [math.exp(-5), math.exp(-5 * 0.25), 1, 1]
    )


def test_the_divergence_from_the_deepest_exit_begins_after_the_ramp():
    assert [ramp_up("deepest", server_round, 25) for server_round in (1, 25, 26)] == [0, 0, 1]
    assert [ramp_up("deepest", server_round, 0.07 * 100) for server_round in (7, 8)] == [0, 1]


@pytest.mark.parametrize("exits", ["mutual", "deepest"])
def test_without_a_ramp_the_divergence_counts_from_the_first_round(exits):
    assert ramp_up(exits, 1, 0) == 1


@pytest.mark.parametrize(
    ("loss", "engine"), [(None, "auto"), (mutual_loss, "auto"), (deepest_loss, "auto"), (mutual_loss, "cohort")]
)
def test_clients_train_the_exits_of_their_method_with_any_engine(loss, engine):
    build = with_exits(build_model("cnn", hidden=(4, 4), norm="none"))
    split = Split(torch.randn(8, 1, 8, 8), torch.arange(8) % 3)
    jobs = [TrainingJob(model=build(1.0), split=split, seed=number, joint_loss=loss) for number in range(2)]
    before = [{name: own.clone() for name, own in job.model.named_parameters()} for job in jobs]
    results = train_together(jobs, TrainOptions(learning_rate=0.1, epochs=1, weight_decay=0.0), engine=engine)
    for job, old in zip(jobs, before, strict=True):
        still = {name for name, own in job.model.named_parameters() if torch.equal(own, old[name])}
        assert still == (set() if loss else {"exits.0.head.linear.weight", "exits.0.head.linear.bias"})
    assert [result.steps for result in results] == [1, 1]
