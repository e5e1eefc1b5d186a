"""Bundled digits, a user's function, the hub, and the real data sets where they are at hand; what is held out."""

import sys
import types
from dataclasses import replace
from threading import Thread

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data import load_dataset, split_dataset
from heterofl_flwr.data.convert import number_owners
from heterofl_flwr.data.known import Facts
from heterofl_flwr.data.splits import hold_out
from tests.data.files import png


@pytest.fixture
def users_module(monkeypatch, fresh):
    """Return a module that can be imported as ``users_data``."""
    module = types.ModuleType("users_data")
    module.__file__ = "users_data.py"
    monkeypatch.setitem(sys.modules, "users_data", module)
    return module


@pytest.fixture
def hub(monkeypatch, fresh):
    """Return a function that puts a data set, or an error, in the place of the hub."""
    monkeypatch.delenv("HETEROFL_DATA", raising=False)

    def answer(content):
        def load(name):
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setattr(datasets, "load_dataset", load)

    return answer


def test_digits_are_split_by_class_and_normalised():
    data = load_dataset("digits")
    assert data.train.inputs.shape == (1442, 1, 8, 8)
    assert data.test.inputs.shape == (355, 1, 8, 8)
    assert (data.classes, data.augment) == (10, "none")
    counts = torch.bincount(data.train.targets), torch.bincount(data.test.targets)
    assert ((counts[1] / (counts[0] + counts[1])) - 0.2).abs().max() < 0.01
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.inputs.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert data.train.inputs.min().item() == data.train.black.item()
    assert load_dataset("digits") is data
    assert Facts.of(data) == Facts.find("digits")


def test_a_function_may_load_another_data_set(users_module):
    users_module.make = lambda: replace(load_dataset("digits"), name="mine")
    names = []
    loading = Thread(target=lambda: names.append(load_dataset("users_data:make").name), daemon=True)
    loading.start()
    loading.join(30)  # it once waited for itself for ever
    assert names == ["mine"]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_function_may_return_two_pairs(users_module, kind):
    users_module.make = lambda: ((kind([[1.5], [2.5]]), kind([0, 2])), (kind([[3.5]]), kind([1])))
    data = load_dataset("users_data:make")
    assert data.train.inputs.tolist() == [[1.5], [2.5]]
    assert data.train.inputs.dtype == torch.float32
    assert data.test.targets.tolist() == [1]
    assert (data.classes, data.name) == (3, "users_data:make")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, r"returned NoneType; expected a Dataset or \(\(train inputs"),
        (((torch.zeros(1, 1), torch.tensor([0.0])), (0, 0)), "train split: targets are torch.float32; expected class"),
        (((torch.zeros(1, 1) * 1j, [0]), (0, 0)), "train split: inputs have type torch.complex64 .* one float32 row"),
        (((torch.zeros(1, 1), torch.tensor([1j])), (0, 0)), "train split: targets are torch.complex64; expected class"),
        (((torch.zeros(1, 1), [0, 0]), (0, 0)), "train split: targets have type .* one int64 class number for each"),
    ],
)
def test_other_returns_raise_an_error(users_module, made, message):
    users_module.make = lambda: made
    with pytest.raises(DataError, match=f"users_data:make.*{message}"):
        load_dataset("users_data:make")


def test_a_column_of_a_function_or_of_the_digits_raises_an_error(users_module):
    """The owners that a function gave were taken for those of any column (natural-hospital)."""
    users_module.make = lambda: load_dataset("digits")
    for name in ("users_data:make", "digits"):
        with pytest.raises(DataError, match=f"{name} has no columns to choose from: found 'hospital' as the column"):
            load_dataset(name, owner="hospital")
        with pytest.raises(DataError, match=r"found data\.label='kind', expected ''"):
            load_dataset(name, label="kind")
        assert load_dataset(name, owner="").classes == 10


def of_the_hub(images, labels) -> datasets.Dataset:
    features = datasets.Features({"picture": datasets.Image(), "digit": datasets.ClassLabel(names=["a", "b"])})
    pictures = [{"bytes": png(value, size=(2, 2)), "path": None} for value in images]
    return datasets.Dataset.from_dict({"picture": pictures, "digit": labels}, features)


def test_the_hubs_features_tell_the_columns(hub):
    train = of_the_hub([0, 100, 200], [0, 1, 0])
    hub(datasets.DatasetDict(train=train.shuffle(seed=1), test=train.select([1])))
    data = load_dataset("user/set")
    assert data.train.inputs.shape == (3, 1, 2, 2)
    assert data.test.targets.tolist() == [1]
    assert data.classes == 2


def test_an_unreachable_hub_is_one_clear_error(hub):
    hub(ConnectionError("no route"))
    with pytest.raises(DataError, match=r"hub's data set 'user/set' cannot be loaded \(.*HETEROFL_DATA; or use digits"):
        load_dataset("user/set")


@pytest.mark.parametrize("root", [None, "."])
def test_an_unknown_name_raises_before_the_hub_is_asked(hub, root):
    hub(AssertionError("asked"))
    with pytest.raises(DataError, match=r"no data set 'mnits'; did you mean mnist\? expected one of digits, mnist, "):
        load_dataset("mnits", root)
    with pytest.raises(DataError, match=r"no data set 'pictures'; expected one of digits"):
        load_dataset("pictures", root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hub_name", "config", "shape", "first"),
    [
        ("mnist", "ylecun/mnist", "mnist", (1, 28, 28), [7, 2, 1, 0, 4]),
        ("cifar10", "uoft-cs/cifar10", "plain_text", (3, 32, 32), [3, 8, 8, 0, 6]),
    ],
)
def test_real_images(shared, tmp_path, name, hub_name, config, shape, first):
    """The test file alone, in both places: all files would take seconds."""
    file = shared / "data" / hub_name / config / "test-00000-of-00001.parquet"
    if not file.is_file():
        pytest.skip(f"needs the data set in shared/data/{hub_name}")
    folder = tmp_path / hub_name / config
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        (folder / f"{part}-00000-of-00001.parquet").symlink_to(file)
    data = load_dataset(name, tmp_path)
    assert data.train.inputs.shape == (10_000, *shape)
    assert data.train.targets[:5].tolist() == first
    assert Facts.of(data) == Facts.find(name)
    assert data.train.inputs.mean((0, 2, 3)).abs().max() < 0.02
    assert data.train.inputs.std((0, 2, 3)).sub(1).abs().max() < 0.35  # the published deviations of CIFAR10 are low
    parts = split_dataset(data, "non-iid-2", 100, 0)
    assert {len(classes) for classes in parts.classes} == {1, 2}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_every_fifth_of_each_group_is_held_out(groups):
    """The slow twin counts through the groups one by one."""
    seen, expected = dict.fromkeys(groups, 0), []
    for group in groups:
        seen[group] += 1
        expected.append(seen[group] % 5 == 0)
    if any(expected):
        assert hold_out("here", torch.tensor(groups)).tolist() == expected
    else:
        with pytest.raises(DataError, match=f"here has no test split, and none of its {len(seen)} groups"):
            hold_out("here", torch.tensor(groups))


def test_owners_are_numbered_in_the_order_of_their_names():
    assert [own.tolist() for own in number_owners(["b", "d", "b"], ["c", "d"])] == [[0, 2, 0], [1, 2]]
    assert [own.tolist() for own in number_owners([10, 9, 10])] == [[1, 0, 1]]
    assert number_owners(None, None) == []
