"""Folders of CSV, of parquet and of images, made here and tiny."""

import shutil

import pytest
import torch

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data import load_dataset
from tests.data.files import SIZE, image_folder, image_table, png, write, write_table


@pytest.mark.parametrize(
    "lines",
    [
        "a,b,label\n1,5,0\n3,5,1\n",
        "label,a,b\n0,1,5\n1,3,5\n",
        "a, Label, b\n1,0,5\n3,1,5\n",
        "a,b,kind\n1,5,no\n3,5,yes\n",
        "0,1,2\n1,5,0\n3,5,1\n",
        "a,b,label\n1700000001,5,0\n1700000003,5,1\n",  # two float64 values of one float32
    ],
)
def test_csv_has_columns_of_numbers_and_a_label(tmp_path, lines):
    write(tmp_path / "train.csv", lines)
    write(tmp_path / "test.csv", lines)
    data = load_dataset(str(tmp_path))
    assert data.train.inputs.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert data.train.targets.tolist() == [0, 1]
    assert (data.classes, data.train.black) == (2, None)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a,b,label\nx,1,0\ny,1,1\n", None, "column a of type large_string"),
        ("a,label\n1,0\n,1\n", None, "1 of 2 values of column a are missing"),
        ("a,label\n1,0\ninf,1\n", None, "column a holds NaN or infinities"),
        ("a,label\n1,0.5\n2,1.5\n", None, "label is of type double; expected whole numbers or texts"),
        ("a,label\n1,0\n", "a,label\n1,1\n", "split test: found label 1; expected 0 to 0"),
        ("a,label\n1,0\n2,9223372036854775808\n", None, "label 9223372036854775808 among 2 examples; expected class"),
        (",a,label\n0,5,0\n1,6,1\n", None, "the row numbers of pandas, Unnamed: 0, .* a table without them"),
        ("5.1,3.5,no\n4.9,3.0,yes\n", None, "found an example in place of names among the columns 5.1, 3.5, no"),
        ("5.1,5.1,1e-3,0\n4.9,3.0,1,1\n", None, "expected the names of the columns in the first line"),
        ("0,0,4,0\n0,1,4,1\n", None, "expected the names of the columns in the first line"),
        ("1,2,0\n3,5,1\n", None, "found an example in place of names among the columns 1, 2, 0"),
        ("a,label\n1,yes\n", "a,label\n1,0\n", "split test: found 0, which the train split lacks"),
        ("a,kind,b\n1,no,2\n3,yes,4\n", None, r"columns of numbers beside the label, b \(data\.label names another\)"),
        ("a;label\n1;0\n2;1\n", None, "found one column, 'a;label'; expected columns separated by commas, not by ';'"),
    ],
)
def test_csv_that_does_not_fit_raises_an_error(tmp_path, train, test, message):
    write(tmp_path / "train.csv", train)
    write(tmp_path / "test.csv", train if test is None else test)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["notes.doc"], r"holds notes\.doc; expected train/<class>/"), ([], "holds nothing; expected")],
)
def test_folders_without_train_and_test_raise_an_error(tmp_path, names, message):
    for name in names:
        write(tmp_path / name, "a,label\n1,0\n")
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("place", ["train/part1/a.csv", "train/a.csv"])
def test_tables_may_lie_in_folders(tmp_path, place):
    write(tmp_path / place, "a,label\n1,0\n3,1\n")
    write(tmp_path / place.replace("train", "test"), "a,label\n1,0\n3,1\n")
    write(tmp_path / "train" / ".ipynb_checkpoints" / "b.csv", "c\n1\n")
    assert load_dataset(str(tmp_path)).train.targets.tolist() == [0, 1]


def test_a_table_beside_more_texts_is_an_error(tmp_path):
    """The texts alone were read, for a language model."""
    write(tmp_path / "data.csv", "a,label\n" + "1,0\n" * 9)
    write(tmp_path / "LICENSE.txt", "free " * 400)
    assert load_dataset(str(tmp_path)).columns == ("a",)
    shutil.copytree(tmp_path, tmp_path / "more")
    write(tmp_path / "more" / "README.txt", "words " * 400)
    with pytest.raises(DataError, match=r"found text files beside data\.csv; expected files of one kind"):
        load_dataset(str(tmp_path / "more"))


@pytest.mark.parametrize("features", [True, False])
def test_parquet_laid_out_like_the_hub_is_read_below_root(tmp_path, features, monkeypatch):
    folder = tmp_path / "user" / "set" / "plain"
    image_table(folder / "train-00000-of-00002.parquet", [0, 10], [0, 1], features=features)
    image_table(folder / "train-00001-of-00002.parquet", [20], [2], features=features)
    image_table(folder / "test-00000-of-00001.parquet", [30], [1], features=features)
    data = load_dataset("user/set", root=tmp_path)
    assert data.train.inputs.shape == (3, 1, *SIZE)
    assert data.train.targets.tolist() == [0, 1, 2]
    assert (data.classes, data.name) == (3, "user/set")
    monkeypatch.setenv("HETEROFL_DATA", str(tmp_path))
    assert load_dataset("user/set") is data


def test_short_names_have_the_papers_mean_deviation_and_augment(tmp_path):
    for name, column, mode in (("ylecun/mnist", "image", "L"), ("uoft-cs/cifar10", "img", "RGB")):
        for part in ("train", "test"):
            image_table(tmp_path / name / f"{part}.parquet", [0, 255], [0, 1], column=column, mode=mode)
    mnist, cifar10 = (load_dataset(name, tmp_path) for name in ("mnist", "cifar10"))
    assert mnist.train.inputs[:, 0, 0, 0].tolist() == pytest.approx([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081])
    assert cifar10.train.black.tolist() == pytest.approx([-0.4914 / 0.2023, -0.4822 / 0.1994, -0.4465 / 0.2010])
    assert (mnist.augment, cifar10.augment) == ("none", "crop-flip")


def test_two_class_columns_without_label_raise_an_error(tmp_path):
    features = {name: {"_type": "ClassLabel", "names": ["no"]} for name in ("fine", "coarse")}
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}.parquet", {"image": [png(1)], "fine": [0], "coarse": [0]}, features)
    with pytest.raises(DataError, match=r"found 2 class columns \(fine, coarse\) .* one named by data\.label"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match=r"found no column finer among the columns image, fine, coarse; expected it"):
        load_dataset(str(tmp_path), label="finer")


def test_a_file_in_place_of_its_folder_is_said_to_be_one(tmp_path, monkeypatch):
    """A relative path such as table/train.csv was looked up on the hub."""
    file = write(tmp_path / "table" / "train.csv", "a,label\n1,0\n")
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "table/train.csv"):
        with pytest.raises(DataError, match=rf"{name} is a file; expected the name of its folder, {file.parent}$"):
            load_dataset(name)


def test_a_missing_folder_is_named_without_asking_the_hub(tmp_path):
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere-at-all"):
        with pytest.raises(DataError, match=r"there is no folder /.*nowhere"):
            load_dataset(name)
    with pytest.raises(
        DataError, match=r"no folder .*/ylecun/mnist: expected a copy .* without root and HETEROFL_DATA"
    ):
        load_dataset("mnist", tmp_path)


def test_a_relative_folder_comes_after_short_names_only(tmp_path, monkeypatch):
    monkeypatch.delenv("HETEROFL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "my" / "pictures")
    (tmp_path / "digits").mkdir()
    assert load_dataset("my/pictures").name == str(tmp_path / "my" / "pictures")
    assert len(load_dataset("digits").train) > 1000
    monkeypatch.setenv("HETEROFL_DATA", str(tmp_path / "hub"))
    assert load_dataset("my/pictures").name == str(tmp_path / "my" / "pictures")
    image_folder(tmp_path / "hub" / "my" / "pictures")
    assert load_dataset("my/pictures").name == "my/pictures"  # that below the root comes first


@pytest.mark.parametrize(
    ("train", "more"),
    [
        ("train", "val/val/0.png"),
        ("train", "train/Thumbs.db"),
        ("train", "README.txt"),
        ("train", "sources.csv"),
        ("Train", ".x"),
    ],
)
def test_classes_may_have_the_names_of_splits(tmp_path, train, more):
    """Of images in train/test, none is a test example, whatever else the folder holds."""
    for part, names in {train: ["test", "train", "val"], "test": ["test", "train"]}.items():
        for number, name in enumerate(names):
            write(tmp_path / part / name / "0.png", png(number))
    write(tmp_path / more, png(9))
    data = load_dataset(str(tmp_path))
    assert (data.names, data.train.targets.tolist(), len(data.test)) == (("test", "train", "val"), [0, 1, 2], 2)


def test_without_splits_each_image_is_read(tmp_path):
    """Those outside ``dev`` and without ``test`` in their names were left out."""
    for number in range(10):
        write(tmp_path / "bus" / f"{'test_' * (number % 2)}{number}.{'png' if number else 'jfif'}", png(number))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "bus").symlink_to(tmp_path / "bus")
    write(tmp_path / "links" / "dev" / "0.png", png(0))
    write(tmp_path / "links" / "LICENSE.TXT", "free")
    data = load_dataset(str(tmp_path / "links"))
    assert (data.names, data.train.targets.bincount().tolist(), len(data.test)) == (("bus", "dev"), [8, 1], 2)


@pytest.mark.parametrize("place", ["{part}/{name}/{number}", "{part}/images/{name}", "{part}/{name}/both"])
def test_folders_above_or_below_the_classes_are_no_classes(tmp_path, place):
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "cat", "dog")):
            folder = tmp_path / place.format(part=part, name=name, number=number)
            write(folder / f"{number}.png", png(number))
    data = load_dataset(str(tmp_path))
    assert (data.names, data.train.targets.tolist()) == (("cat", "dog"), [0, 0, 1])


@pytest.mark.parametrize("annotation", ["{}.txt", "boxes_{}.txt", "{}.json"])
@pytest.mark.parametrize("names", [("cat", "dog"), ("cat",)])
def test_annotations_beside_each_image_change_nothing(names, annotation, tmp_path):
    """A folder of images with annotations was read as a text for a language model."""
    for number, name in enumerate(names * 5):
        write(tmp_path / name / f"{number}.png", png(number))
        write(tmp_path / name / annotation.format(number), "[0.5, 0.5, 1, 1]\n" * 100)
    assert load_dataset(str(tmp_path)).names == names


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("test/bird/0.png", "split test: found bird, which the train split lacks; expected its classes cat, dog"),
        ("train/preview.png", "or a folder whose images all lie in folders of classes"),
    ],
)
def test_images_of_no_class_of_the_train_split_raise_an_error(image, message, tmp_path):
    write(image_folder(tmp_path) / image, png(1))
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_an_image_folder_has_its_folders_as_classes(tmp_path):
    data = load_dataset(str(image_folder(tmp_path)))
    assert data.train.inputs.shape == (4, 1, *SIZE)
    assert data.test.inputs.shape == (2, 1, *SIZE)
    assert data.train.targets.tolist() == [0, 0, 1, 1]
    assert data.test.targets.tolist() == [0, 1]
    assert (data.classes, data.augment, data.name) == (2, "none", str(tmp_path))
    assert data.train.inputs.is_contiguous()
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.inputs.std(correction=0).item() == pytest.approx(1)
    mean = (0 + 200 + 50 + 250) / 4 / 255
    pixels = (data.test.inputs - data.test.black[:, None, None])[:, 0, 0, 0]  # of one grey value each
    assert (pixels[0] / pixels[1]).item() == pytest.approx(100 / 150)
    assert torch.equal(data.train.black, data.test.black)
    assert (data.train.black / pixels[0]).item() == pytest.approx(-mean / (100 / 255))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(1, size=(9, 9)), r"image 1 has .* \(9, 9\), the first one \(4, 5\); .* scale them"),
        (png(1, "I;16"), r"found I;16.* pixels, expected 8 bits"),
        (png(1).replace(b"IDAT", b"\x00\x00\x00I"), "image 1: this is no image that Pillow can read"),
    ],
    ids=["size", "deep", "damaged"],
)
def test_images_that_do_not_fit_are_named(tmp_path, content, message):
    image_folder(tmp_path)
    write(tmp_path / "train" / "cat" / "1.png", content)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_hidden_files_and_folders_are_not_read(tmp_path):
    images = image_folder(tmp_path / ".mine" / "images")
    write(images / "train" / ".ipynb_checkpoints" / "0.png", png(0))
    write(images / "train" / "cat" / "._0.png", "no image")
    data = load_dataset(str(images))
    assert (data.names, len(data.train)) == (("cat", "dog"), 4)


@pytest.mark.parametrize("name", ["data.csv", "train.csv"])
def test_of_a_single_file_a_part_of_each_class_is_held_out(tmp_path, name):
    rows = [(value, "ab"[value % 2], value // 10 % 3) for value in range(40)]
    write(tmp_path / name, "\n".join(["value,kind,who", *(f"{a},{b},{c}" for a, b, c in rows)]))
    data = load_dataset(str(tmp_path), label="kind")
    assert data.columns == ("value", "who")
    assert data.test.targets.bincount().tolist() == [4, 4]
    data = load_dataset(str(tmp_path), label="kind", owner="who")
    assert data.columns == ("value",)
    assert [own.bincount().tolist() for own in data.owners] == [[16, 8, 8], [4, 2, 2]]
    write(tmp_path / name, (tmp_path / name).read_text().replace("kind", "label", 1))
    data = load_dataset(f"{tmp_path}/.", owner="label")  # the label, too, not the column before it
    assert (data.columns, data.names, data.owners[1].tolist()) == (("value", "who"), ("a", "b"), [0, 1] * 4)


def test_without_a_test_folder_images_are_held_out(tmp_path):
    for number in range(10):
        write(tmp_path / "train" / ("cat", "dog")[number % 2] / f"{number}.png", png(number))
    write(tmp_path / "val" / "cat" / "0.png", png(1))
    with pytest.raises(DataError, match="has no test split, only train, val:"):
        load_dataset(str(tmp_path))
    shutil.rmtree(tmp_path / "val")
    assert load_dataset(str(tmp_path)).test.targets.tolist() == [0, 1]
