"""The plain loop computes what ours does: it is the reference of speeds, so it has to be right."""

import pytest
import torch

from heterofl_flwr.data import Split
from heterofl_flwr.nn import CNN, collect_moments, with_static_norm
from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.training import TrainOptions, evaluate
from simulations.bench import plain_loop

OPTIONS = TrainOptions(learning_rate=0.01, epochs=1)


@pytest.fixture
def pixels():
    return torch.randint(256, (40, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(2)
    return CNN(hidden=(4, 8))


def batches(pixels, labels, size=10):
    return plain_loop.loader(plain_loop.Pictures(pixels, labels, plain_loop.MNIST), size, range(len(labels)))


@pytest.mark.parametrize("look", [plain_loop.MNIST, plain_loop.CIFAR10])
def test_pixels_are_what_the_inputs_were_made_of(look):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, len(look.mean), 16, 16)
    torch.testing.assert_close(look.pixels(look.inputs(pixels)), pixels, rtol=0, atol=0)


@pytest.mark.parametrize(("look", "channels"), [(plain_loop.MNIST, 1), (plain_loop.CIFAR10, 3)])
def test_a_picture_becomes_the_input_that_ours_has(look, channels):
    pixels = torch.randint(256, (3, channels, 32, 32), dtype=torch.uint8)
    still = plain_loop.Look(look.mean, look.deviation)
    pictures = plain_loop.Pictures(pixels, torch.tensor([4, 0, 9]), still)
    for number, expected in enumerate(look.inputs(pixels)):
        torch.testing.assert_close(pictures[number]["img"], expected)
    assert [int(pictures[number]["label"]) for number in range(3)] == [4, 0, 9]


def test_varied_pictures_differ_each_time():
    pictures = plain_loop.Pictures(
        torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8), torch.tensor([0]), plain_loop.CIFAR10
    )
    torch.manual_seed(0)
    assert len({pictures[0]["img"].sum().item() for _ in range(5)}) > 1


def test_batches_are_shuffled_where_no_order_is_given(labels, pixels):
    torch.manual_seed(0)
    data = plain_loop.Pictures(pixels, torch.arange(40), plain_loop.MNIST)
    seen = [int(label) for batch in plain_loop.loader(data, 7) for label in batch["label"]]
    assert sorted(seen) == list(range(40))
    assert seen != list(range(40))


def test_static_norm_is_that_of_the_paper(model, pixels, labels):
    static = plain_loop.with_moments(model, batches(pixels, labels))
    inputs = plain_loop.MNIST.inputs(pixels)
    expected = with_static_norm(model, collect_moments(model, inputs.split(10), kind="paper"))
    for name, layer in batch_norms(expected).items():
        torch.testing.assert_close(batch_norms(static)[name].running_mean, layer.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch_norms(static)[name].running_var, layer.running_var, rtol=1e-4, atol=1e-5)
    assert all(layer.running_mean is None for layer in batch_norms(model).values())


@pytest.mark.parametrize("classes", [None, [0, 1, 2]])
def test_a_test_finds_what_ours_finds(model, pixels, labels, classes):
    static = plain_loop.with_moments(model, batches(pixels, labels))
    metrics = plain_loop.Metrics()
    plain_loop.test(static, batches(pixels, labels, 7), metrics, classes)
    found = evaluate(static, Split(plain_loop.MNIST.inputs(pixels), labels), classes=classes)
    assert metrics.examples == found.examples == 40
    assert metrics.loss == pytest.approx(found.loss, rel=1e-5)
    assert metrics.accuracy == pytest.approx(found.accuracy)


def test_training_tells_loss_and_accuracy_as_seen(model, pixels, labels):
    expected = evaluate(model.eval(), Split(plain_loop.MNIST.inputs(pixels), labels), batch_size=40)
    still = TrainOptions(learning_rate=1e-12, epochs=2)
    metrics = plain_loop.train(model, batches(pixels, labels, 40), range(10), still)
    assert metrics.examples == 80
    assert metrics.loss == pytest.approx(expected.loss, rel=1e-4)
    assert metrics.accuracy == pytest.approx(expected.accuracy)


def test_absent_classes_do_not_learn(model, pixels, labels):
    before = model.linear.bias.detach().clone()
    plain_loop.train(model, batches(pixels, labels), range(5), OPTIONS)
    moved = (model.linear.bias.detach() != before).tolist()
    # Bias starts at 0, so weight decay alone moves none.
    assert moved == [True] * 5 + [False] * 5
