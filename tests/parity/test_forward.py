"""Our models against theirs with the same weights: logits, masked loss, gradients, static batch norm, training."""

import copy

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Aggregation
from heterofl_flwr.nn import collect_moments, mask_logits, masked_cross_entropy, with_static_norm
from tests.parity.theirs import CLASSES, OURS, WORDS, copy_by_position, randomise

pytestmark = pytest.mark.parity

CASES = [
    *((model, norm) for model in ("conv", "resnet18") for norm in ("bn", "in", "gn", "ln", "none")),
    ("resnet50", "bn"),
    ("transformer", "bn"),  # a setting that it does not read
]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def _batch(model, seed=0, number=5):
    """Return a batch as they take it: the text is its own target."""
    generator = torch.Generator().manual_seed(seed)
    if model == "transformer":
        return {"label": torch.randint(WORDS, (number, 12), generator=generator)}
    images = torch.randn(number, 3, 16, 16, generator=generator)
    return {"img": images, "label": torch.randint(CLASSES, (number,), generator=generator)}


def _input(batch):
    return batch.get("img", batch["label"])


def _pair(authors, model, rate, global_rate=1.0):
    authors.configure(model, global_rate=global_rate)
    theirs = randomise(authors.theirs(rate), seed=1)
    ours = authors.ours()(rate)
    copy_by_position(theirs, ours)
    return theirs, ours


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("scale", [True, False], ids=["scaler", "plain"])
@pytest.mark.parametrize(("rate", "global_rate"), [(1.0, 1.0), (0.5, 1.0), (0.0625, 1.0), (0.25, 0.5)])
@pytest.mark.parametrize(("model", "norm"), CASES)
def test_outputs_losses_and_gradients_are_theirs(authors, model, norm, rate, global_rate, scale, training):
    authors.cfg.update(norm=norm, scale=scale)
    if norm == "gn" and rate == 0.0625:
        pytest.skip("their four groups do not divide so few channels")
    if model == "transformer" and not scale:
        pytest.skip("their Transformer always has Scalers")
    theirs, ours = _pair(authors, model, rate, global_rate)
    batch = _batch(model)
    theirs.train(training)
    ours.train(training)
    for known in (None, [0, 3, 5]):
        output = theirs(batch if known is None else {**batch, "label_split": torch.tensor(known)})
        classes = None if known is None else torch.tensor(known)
        logits = ours(_input(batch))
        loss = masked_cross_entropy(logits, batch["label"], classes, "zero")
        torch.testing.assert_close(mask_logits(logits, classes, "zero"), output["score"], **TOLERANCE)
        torch.testing.assert_close(loss, output["loss"], **TOLERANCE)
        gradients = [
            torch.autograd.grad(one, list(two.parameters())) for one, two in ((output["loss"], theirs), (loss, ours))
        ]
        largest = max(gradient.abs().max().item() for gradient in gradients[0])
        for expected, found in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * max(largest, 1.0))


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("model", [*OURS, "resnet50"])
def test_a_seed_gives_the_same_weights(authors, model, rate):
    authors.configure(model)
    theirs = authors.theirs(rate)
    torch.manual_seed(round(1000 * rate))
    ours = authors.ours()(rate)
    assert all(torch.equal(*pair) for pair in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("model", ["conv", "resnet18"])
def test_static_batch_norm_is_theirs(authors, model, rate):
    _, ours = _pair(authors, model, rate, global_rate=rate)
    tracking = authors.theirs(rate, track=True)
    copy_by_position(ours, tracking)
    batches = [_batch(model, seed, number) for seed, number in enumerate((10, 10, 10, 4))]
    with torch.no_grad():
        tracking.train(True)
        for batch in batches:
            tracking(batch)
        tracking.train(False)
        expected = tracking(_batch(model, 99))["score"]
    moments = collect_moments(ours, [_input(batch) for batch in batches], kind="paper")
    static = with_static_norm(ours, moments)
    torch.testing.assert_close(static(_input(_batch(model, 99))), expected, **TOLERANCE)
    norms = [[layer for layer in one.modules() if isinstance(layer, nn.BatchNorm2d)] for one in (tracking, static)]
    for theirs, mine in zip(*norms, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, **TOLERANCE)
        torch.testing.assert_close(mine.running_var, theirs.running_var, **TOLERANCE)


def _train(model, steps, loss_of):
    """Train as they do: SGD with momentum and weight decay, gradients clipped to norm 1."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for batch in steps:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model", OURS)
def test_two_rounds_of_training_are_theirs(authors, model):
    authors.configure(model)
    rates, labels = [1.0, 0.25, 0.5, 0.0625], [[0, 1, 2], [2, 3], [4, 5, 6, 7], [1, 8]]
    theirs = randomise(authors.theirs(1.0), seed=2)
    build = authors.ours()
    full = build(1.0)
    copy_by_position(theirs, full)
    state = {name: parameter.detach().clone() for name, parameter in full.named_parameters()}
    federation = authors.federation({name: value.detach() for name, value in theirs.named_parameters()}, rates, labels)
    plans = authors.plans(set(rates))

    def their_loss(module, batch):
        return module(batch)["loss"]

    for server_round in range(2):
        sliced, kept = federation.distribute([0, 1, 2, 3])
        aggregator, replies = Aggregation(state, label_rows=full.label_rows, extra_rows=False), []
        for client, (rate, known) in enumerate(zip(rates, labels, strict=True)):
            steps = [
                {**_batch(model, 100 * server_round + 10 * client + step), "label_split": torch.tensor(known)}
                for step in range(3)
            ]
            local = authors.theirs(rate)
            local.load_state_dict(sliced[client])
            replies.append(_train(local, copy.deepcopy(steps), their_loss))

            def our_loss(module, batch):
                return masked_cross_entropy(module(_input(batch)), batch["label"], batch["label_split"], "zero")

            mine = build(rate)
            mine.load_state_dict(plans[rate].extract(state))
            aggregator.add(plans[rate], _train(mine, steps, our_loss), labels=known)
        federation.combine(replies, kept, [0, 1, 2, 3])
        state = aggregator.result()
    for (name, expected), found in zip(federation.global_parameters.items(), state.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
