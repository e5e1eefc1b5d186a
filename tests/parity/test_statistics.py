"""What static batch norm is measured on against the authors' pass over CIFAR-10, which varies the images."""

import pytest
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from heterofl_flwr.app.workload import Workload
from heterofl_flwr.data import Split
from heterofl_flwr.nn import collect_moments, with_static_norm
from heterofl_flwr.settings.validate import from_flat
from tests.parity.theirs import copy_by_position

pytestmark = pytest.mark.parity

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGES, BATCH = 3000, 10


def _first_norm(model):
    return next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize("model", ["conv", "resnet18"])
def test_the_statistics_of_cifar10_are_theirs(authors, shared, model):
    authors.cfg["data_shape"] = [3, 32, 32]
    authors.configure(model, global_rate=1.0)
    tracking = authors.theirs(1.0, track=True)
    ours = authors.ours()(1.0)
    copy_by_position(tracking, ours)
    workload = Workload(
        from_flat({"data.name": "cifar10", "data.root": str(shared / "data"), "train.batch-size": BATCH})
    )
    split = Split(workload.train.inputs[:IMAGES], workload.train.targets[:IMAGES], workload.train.black)
    pixels = split.inputs * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    images = [to_pil_image(pixel.clamp(0, 1)) for pixel in pixels]
    as_theirs = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    torch.manual_seed(0)
    tracking.train(True)
    with torch.no_grad():
        for rows in torch.randperm(IMAGES).split(BATCH):
            batch = torch.stack([as_theirs(images[row]) for row in rows])
            tracking({"img": batch, "label": torch.zeros(len(batch), dtype=torch.int64)})

    def variance(batches):
        return _first_norm(with_static_norm(ours, collect_moments(ours, batches))).running_var

    expected = _first_norm(tracking).running_var
    torch.testing.assert_close(variance(workload.moments_batches(split, seed=1)), expected, rtol=0.03, atol=0)
    assert (variance(split.inputs.split(BATCH)) / expected).median() < 0.95
