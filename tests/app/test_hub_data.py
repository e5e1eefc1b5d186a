"""Two rounds by command on files that are laid out as CIFAR100 and FEMNIST are on the hub."""

import math

import numpy as np
import pytest

from heterofl_flwr.app.cli.main import main
from heterofl_flwr.app.task import load_task
from heterofl_flwr.report import RunFolder
from tests.data.files import png, write_table

SMALL = {"train.epochs": 1, "sample.fraction": 1.0, "run.callbacks": "", "model.hidden": "4,8", "model.name": "cnn"}


def write_cifar100(folder):
    """Write 100 images for training and 40 for testing, of 100 fine and 20 coarse classes."""
    for part, number in (("train", 100), ("test", 40)):
        fine = np.arange(number)
        images = [{"bytes": png(int(value), "RGB", (32, 32)), "path": None} for value in fine]
        columns = {"img": images, "fine_label": fine, "coarse_label": fine // 5}
        names = {"fine_label": [f"fine {i}" for i in range(100)], "coarse_label": [f"coarse {i}" for i in range(20)]}
        features = {name: {"_type": "ClassLabel", "names": own} for name, own in names.items()}
        write_table(folder / f"{part}-00000-of-00001.parquet", columns, {"img": {"_type": "Image"}, **features})


def write_femnist(folder):
    """Write the images of five writers, 10, 11, ... of each, and a train split alone."""
    writers = [f"f{writer:04d}_14" for writer in range(5) for _ in range(10 + writer)]
    images = [{"bytes": png(number, "L", (28, 28)), "path": None} for number in range(len(writers))]
    columns = {"image": images, "writer_id": writers, "hsf_id": [0] * len(writers), "character": range(len(writers))}
    character = {"_type": "ClassLabel", "names": [f"character {number}" for number in range(62)]}
    features = {"image": {"_type": "Image"}, "writer_id": {"_type": "Value", "dtype": "string"}, "character": character}
    write_table(folder / "data" / "train-00000-of-00001.parquet", columns, features)


@pytest.mark.parametrize(
    ("write", "name", "settings", "train", "test", "classes"),
    [
        (write_cifar100, "uoft-cs/cifar100", {"data.label": "coarse_label"}, [25, 25, 25, 25], [10, 10, 10, 10], 20),
        (write_femnist, "flwrlabs/femnist", {"data.split": "natural-writer_id"}, [8, 9, 10, 11], [2, 2, 2, 2], 62),
    ],
    ids=["cifar100", "femnist"],
)
def test_two_rounds_by_command(tmp_path, write, name, settings, train, test, classes):
    """Of FEMNIST's five writers, the first four are clients; of the images of each, a fifth is held out."""
    write(tmp_path / name)
    words = [f"{key}={value}" for key, value in {**SMALL, **settings, "data.root": tmp_path}.items()]
    options = ["--data", name, "--clients", "4", "--rounds", "2", "--mix", "a-e", "--out", str(tmp_path / "run")]
    options += ["--grid", "local", "--parallel", "1", *(part for word in words for part in ("--set", word))]
    assert main(["run", *options]) == 0
    folder = RunFolder(tmp_path / "run")
    first, last = folder.history()
    assert first.failures == last.failures == {}
    assert math.isfinite(last.evaluate["global-loss"])
    parts = load_task(folder.settings()).partitions(4)
    assert [len(rows) for rows in parts.test] == test
    assert [len(rows) for rows in parts.train] == train
    assert folder.load_checkpoint().state["linear.weight"].shape == (classes, 8)
