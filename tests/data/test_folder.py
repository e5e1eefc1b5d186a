"""Folders of CSV, of parquet and of images, made here and tiny."""

import pyarrow as pa
import pytest
import torch

from heterofl_flwr.data import load_dataset
from heterofl_flwr.errors import DataError
from tests.data.files import SIZE, image_folder, image_table, png, write, write_table


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("a,b,label\n1,5,0\n3,5,1\n", [0, 1]),
        ("label,a,b\n0,1,5\n1,3,5\n", [0, 1]),
        ("a,b,kind\n1,5,no\n3,5,yes\n", [0, 1]),
        ("a,b,kind\n1,5,true\n3,5,false\n", [1, 0]),
    ],
    ids=["label last", "label first", "texts", "truths"],
)
def test_csv_has_columns_of_numbers_and_a_label(tmp_path, lines, labels):
    write(tmp_path / "train.csv", lines)
    write(tmp_path / "test.csv", lines)
    data = load_dataset(str(tmp_path))
    assert data.train.inputs.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert data.train.targets.tolist() == labels
    assert (data.classes, data.train.black) == (2, None)


@pytest.mark.parametrize(
    "names",
    [
        ("train/1", "train/2", "test/1"),
        ("train1", "train2", "test1"),
        ("training_1", "train (2)", "testing-1"),
    ],
)
def test_a_split_may_lie_in_several_files_and_in_a_folder(tmp_path, names):
    for name, lines in zip(names, ("1,0\n", "2,1\n3,1\n", "2,1\n"), strict=True):
        write(tmp_path / f"{name}.csv", f"a,label\n{lines}")
    data = load_dataset(str(tmp_path))
    assert (sorted(data.train.targets.tolist()), data.test.targets.tolist()) == ([0, 1, 1], [1])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "a,b,label\nx,1,0\ny,1,1\n",
            None,
            "column a of type large_string among the columns a, b, label; expected .* numbers",
        ),
        ("a,label\n1,0\n,1\n", None, "1 of 2 values of column a are missing"),
        ("a,label\n1,0\n2,\n", None, "1 of 2 values of column label are missing"),
        ("a,label\n1,yes\n2,\n3,no\n", None, "1 of 3 values of column label are missing; fill them in"),
        ("a,label\n1,0\ninf,1\n", None, "column a holds NaN or infinities"),
        ("a,label\n1,0.5\n2,1.5\n", None, "label column label is of type double; expected whole numbers or texts"),
        ("label\n0\n1\n", None, "found no column beside the label"),
        ("a,label\n1,0\n", "a,label\n1,1\n", "split test: found label 1; expected 0 to 0"),
        ("a,label\n1,-1\n", None, "found label -1"),
        (
            "a,label\n1,0\n",
            "a,label\n1,no\n",
            "cannot be read .*Failed to parse string: 'no' as a scalar of type int64",
        ),
        (
            "a,label\n1,yes\n",
            "a,label\n1,0\n",
            "split test: found 0, which the train split lacks; expected its classes yes",
        ),
        ("a,label\n1,0\n", "b,label\n1,0\n", "cannot be read .CastError: Couldn't cast b: int64"),
        ("a,label\n", None, "cannot be read .*corresponds to no data"),
        ("", None, "cannot be read .*No columns to parse from file"),
    ],
)
def test_csv_that_does_not_fit_raises_an_error(tmp_path, train, test, message):
    write(tmp_path / "train.csv", train)
    write(tmp_path / "test.csv", train if test is None else test)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "valid.csv"], "has no test split, only train, validation"),
        (["test.csv"], "has no train split, only test"),
        (["notes.doc"], r"holds notes\.doc; expected train/<class>/"),
        ([], "holds nothing; expected"),
    ],
)
def test_folders_without_train_and_test_raise_an_error(tmp_path, names, message):
    for name in names:
        write(tmp_path / name, "a,label\n1,0\n")
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


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


def test_images_may_be_plain_bytes_and_labels_dictionaries_or_the_only_class_column(tmp_path):
    labels = pa.array(["yes", "no"]).dictionary_encode()
    for part in ("train", "test"):
        write_table(tmp_path / f"a/{part}.parquet", {"image": [png(1), png(2)], "label": labels})
        image_table(tmp_path / f"b/{part}.parquet", [1, 2], [0, 1], label="kind")
    assert load_dataset("a", tmp_path).train.targets.tolist() == [1, 0]
    assert load_dataset("b", tmp_path).train.targets.tolist() == [0, 1]


PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [png(1)], "other": [png(1)], "label": [0]}, r"found 2 image columns \(image, other\)"),
        ({"image": [png(1)], "kind": [0]}, "found no class column among the columns image, kind; expected a column"),
        ({"image": [png(1)], "label": [[0]]}, "label column label is of type list"),
        ({"image": [None, png(1)], "label": [0, 0]}, "1 of 2 values of column image are missing"),
        ({"text": ["a"], "label": [0]}, "column text of type string among the columns text, label"),
        ({"image": [b"x"], "label": [0]}, "split train, column image, image 0: this is no image"),
        ({"image": [{"bytes": None, "path": "no/such.png"}], "label": [0]}, r"no/such\.png"),
        ({"image": pa.array([(None, None)], PATHS), "label": [0]}, "column image, image 0: this is no image"),
    ],
)
def test_tables_that_do_not_fit_name_the_column(tmp_path, columns, message):
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}.parquet", columns)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_two_class_columns_of_which_none_is_called_label_raise_an_error(tmp_path):
    features = {name: {"_type": "ClassLabel", "names": ["no"]} for name in ("fine", "coarse")}
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}.parquet", {"image": [png(1)], "fine": [0], "coarse": [0]}, features)
    with pytest.raises(DataError, match=r"found 2 class columns \(fine, coarse\) .* or by data\.label"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match=r"found the columns image, fine, coarse; expected one named finer"):
        load_dataset(str(tmp_path), label="finer")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    image_table(tmp_path / "test.parquet", [1], [0])
    write(tmp_path / "train.parquet", "version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        DataError, match=r"cannot be read \(ArrowInvalid: Parquet magic bytes not found.* is the copy complete"
    ):
        load_dataset(str(tmp_path))


def test_unequal_channels_of_a_known_set_raise_an_error(tmp_path):
    for part in ("train", "test"):
        image_table(tmp_path / f"ylecun/mnist/{part}.parquet", [1], [0], mode="RGB")
    with pytest.raises(DataError, match="found 3 channels, expected 1"):
        load_dataset("mnist", tmp_path)


def test_a_folder_that_does_not_exist_is_named_without_asking_the_hub(tmp_path):
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere-at-all"):
        with pytest.raises(DataError, match=r"there is no folder /.*nowhere"):
            load_dataset(name)
    with pytest.raises(
        DataError, match=r"no folder .*/ylecun/mnist: expected a copy .* without root and HETEROFL_DATA"
    ):
        load_dataset("mnist", tmp_path)


def test_a_relative_folder_is_found_before_the_hub_but_not_before_short_names(tmp_path, monkeypatch):
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


def test_an_image_folder_has_its_folders_as_classes_and_is_normalised_by_the_train_split(tmp_path):
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


def test_coloured_images_have_three_channels(tmp_path):
    for mode in ("RGB", "RGBA"):
        assert load_dataset(str(image_folder(tmp_path / mode, mode))).train.inputs.shape == (4, 3, *SIZE)


def test_a_constant_channel_stays_finite(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "cat" / "1.png", png(7))
    assert load_dataset(str(tmp_path)).test.inputs.abs().max() == 0


def test_sources_are_read_once_and_left_as_they_are(tmp_path):
    before = {file: file.stat().st_mtime_ns for file in image_folder(tmp_path).rglob("*")}
    assert load_dataset(str(tmp_path)) is load_dataset(str(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(1, size=(9, 9)), r"image 1 has .* \(9, 9, 1\), the first one \(4, 5, 1\); .* scale them"),
        (png(1, "I;16"), r"found I;16.* pixels, expected 8 bits"),
        (png(1).replace(b"IDAT", b"\x00\x00\x00I"), "image 1: this is no image that Pillow can read"),
        (b"not an image", "image 1: this is no image that Pillow can read"),
        (png(1, "RGB"), r"\(4, 5, 3\), the first one \(4, 5, 1\)"),
    ],
    ids=["size", "deep", "damaged", "broken", "mixed"],
)
def test_images_that_do_not_fit_are_named(tmp_path, content, message):
    image_folder(tmp_path)
    write(tmp_path / "train" / "cat" / "1.png", content)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_a_test_class_that_the_train_split_lacks_is_named(tmp_path):
    write(image_folder(tmp_path) / "test" / "cow" / "1.png", png(1))
    with pytest.raises(DataError, match="found cow, which the train split lacks; expected its classes cat, dog"):
        load_dataset(str(tmp_path))


def test_hidden_files_and_folders_are_not_read(tmp_path):
    images, tables = image_folder(tmp_path / ".mine" / "images"), tmp_path / "tables"
    write(images / "train" / ".ipynb_checkpoints" / "0.png", png(0))
    write(images / "train" / "cat" / "._0.png", "no image")
    data = load_dataset(str(images))
    assert (data.names, len(data.train)) == (("cat", "dog"), 4)
    for name in ("visits.csv", ".ipynb_checkpoints/visits.csv"):
        write(tables / name, "a,label\n" + "1,0\n2,1\n" * 10)
    data = load_dataset(str(tables))
    assert len(data.train) + len(data.test) == 20
    for number in range(10):
        write(tmp_path / "alone" / "train" / "cat" / f"{number}.png", png(number))
    (tmp_path / "alone" / ".git").mkdir()
    assert load_dataset(str(tmp_path / "alone")).test.targets.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["data.csv", "train.csv"])
def test_a_single_file_is_the_train_split_and_of_each_class_or_owner_a_part_is_held_out(tmp_path, name):
    rows = [(value, "ab"[value % 2], value // 10 % 3) for value in range(40)]
    write(tmp_path / name, "\n".join(["value,kind,who", *(f"{a},{b},{c}" for a, b, c in rows)]))
    data = load_dataset(str(tmp_path), label="kind", test_share=0.25)
    assert data.columns == ("value", "who")
    assert data.test.targets.bincount().tolist() == [5, 5]
    data = load_dataset(str(tmp_path), label="kind", owner="who", test_share=0.5)
    assert data.columns == ("value",)
    assert [own.bincount().tolist() for own in data.owners] == [[10, 5, 5]] * 2


def test_an_owner_that_is_missing_is_refused_as_a_gap_among_numbers_is(tmp_path):
    write(tmp_path / "data.csv", "value,kind,who\n1,a,north\n2,b,\n3,a,south\n")
    with pytest.raises(DataError, match="1 of 3 values of column who are missing; fill them in"):
        load_dataset(str(tmp_path), label="kind", owner="who")


def test_without_a_test_folder_a_part_of_each_class_of_images_is_held_out(tmp_path):
    for number in range(10):
        write(tmp_path / "train" / "cat" / f"{number}.png", png(number))
    assert load_dataset(str(tmp_path)).test.targets.tolist() == [0, 0]
    write(tmp_path / "val" / "cat" / "0.png", png(1))
    with pytest.raises(DataError, match="has no test split, only train, validation"):
        load_dataset(str(tmp_path), test_share=0.5)
    with pytest.raises(DataError, match=r"holds images by class: found data\.label='kind', expected ''"):
        load_dataset(str(tmp_path), label="kind")


def test_an_image_folder_without_test_images_raises_an_error(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png", png(1))
    write(tmp_path / "test" / "1.png", png(1))
    with pytest.raises(
        DataError, match="split test: found test, which the train split lacks; expected its classes cat"
    ):
        load_dataset(str(tmp_path))
