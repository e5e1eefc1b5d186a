"""Reading of a folder or a hub data set with Hugging Face's ``datasets``."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from glob import glob
from itertools import pairwise
from pathlib import Path
from re import IGNORECASE, fullmatch
from tempfile import TemporaryDirectory
from typing import Any, cast

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from PIL import Image

from heterofl_flwr.common.errors import DataError, listed
from heterofl_flwr.data.convert import Raw, Values, to_dataset
from heterofl_flwr.data.dataset import Dataset
from heterofl_flwr.data.known import Columns, Source
from heterofl_flwr.data.text import Texts, to_text

PARTS = ("train", "test")
COLUMNAR = (".csv", ".tsv", ".parquet", ".arrow")
TABLES = (*COLUMNAR, ".txt", ".json", ".jsonl")
SEPARATORS = ";\t|"
"""Separators in CSV files, other than commas."""

INDEXES = ("Unnamed: ", "__index_level_")
"""Name prefixes of the columns in which pandas stores row numbers."""

IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read(name: str, folder: Path | None, source: Source, columns: Columns) -> Dataset:
    """Return the data set in ``folder``. Without a folder, read ``source.path`` from the hub."""
    splits: Mapping[str, datasets.Dataset] = _read_folder(folder) if folder else _read_hub(source.path)
    place = str(folder) if folder else f"the hub's data set {source.path!r}"
    missing = [split for split in PARTS if split not in splits]
    if missing and list(splits) != ["train"]:
        raise DataError(
            f"{place} has no {' and no '.join(missing)} split, only {listed(splits, 10)}: expected train "
            "and test, or train alone; a function can make them (module:function)"
        )
    parts = (part for part in PARTS if part in splits)
    train, *rest = (_read_split(splits[part], f"{place}, split {part}", columns) for part in parts)
    test = next(iter(rest), None)
    if isinstance(train, Texts):
        return to_text(name, train, cast("Texts | None", test), source.rows)
    return to_dataset(name, train, cast("Raw | None", test), source.normal, source.augment)


def _read_folder(folder: Path) -> Any:
    if (images := _read_image_folders(folder)) is not None:
        return images
    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # leave no copy of the data in the user's cache
            splits = datasets.load_dataset(str(folder), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # missing files, damaged files and several configurations all raise different errors
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        text = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        files = listed((file.name for file in folder.iterdir()), 10) or "nothing"
        raise DataError(
            f"{folder} cannot be read ({text}). It holds {files}; expected "
            f"train/<class>/*.png and test/<class>/*.png, or train and test files of equal columns as .parquet or "
            f".csv: is the copy complete?"
        ) from error
    finally:
        datasets.enable_progress_bars()
    # Of several kinds of files, ``datasets`` reads that with the most files, such as two licences and not one table.
    kind = next(iter(splits.values())).info.builder_name
    unread = [name for name in glob("**", root_dir=folder, recursive=True) if name.lower().endswith(COLUMNAR)]
    if unread and kind in ("text", "json"):
        raise DataError(
            f"{folder}: found {kind} files beside {min(unread)}; expected files of one kind: move the others elsewhere"
        )
    return splits


def _read_image_folders(folder: Path) -> dict[str, datasets.Dataset] | None:
    """Return images by split, labelled with the names of their folders; None if ``folder`` has another layout.

    The layout is ``<split>/[.../]<class>/[.../]<image>``, or ``<class>/<image>`` without splits. The class is the first
    folder below the split whose name differs among the images. ``datasets`` does not read this layout correctly. It
    takes the last folder as the class, and leaves out folders that are links. If there is only one class, it drops the
    labels. If a class or a file has the name of a split, it adds the images to this split: images in train/test would
    become test examples too.
    """
    files = [Path(name) for name in sorted(glob("**", root_dir=folder, recursive=True)) if (folder / name).is_file()]
    parts = {path: path.parts[0].lower() for path in files if path.suffix.lower() in IMAGES}
    has_splits = "train" in parts.values()
    if set(PARTS) <= set(parts.values()):
        parts = {path: part for path, part in parts.items() if part in PARTS}
    depths = {len(path.parts) for path in parts}
    is_labelled = min(depths, default=0) > 2 if has_splits else depths == {2} and "test" not in parts.values()
    if not is_labelled:
        return None
    levels = range(int(has_splits), min(depths) - 1)
    level = next((level for level in levels if len({path.parts[level] for path in parts}) > 1), levels[0])
    names = {path.parts[level] for path in parts}
    # A file named as an image has its annotations. A text beside an image, or in a folder of several classes, such as
    # README.txt, is no table either.
    folders, stems = {path.parent for path in parts}, {path.with_suffix("") for path in parts}
    tables = [path for path in files if path.suffix.lower() in TABLES and path.with_suffix("") not in stems]
    if has_splits:  # a table outside of them matters only if it says what the images are
        tables = [path for path in tables if len(path.parts) > 1 or path.stem.lower() == "metadata"]
    if any(path.suffix.lower() != ".txt" or (len(names) == 1 and path.parent not in folders) for path in tables):
        return None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    splits: dict[str, dict[str, list[Any]]] = defaultdict(lambda: {"image": [], "label": []})
    for path, part in parts.items():
        columns = splits[part if has_splits else "train"]
        columns["image"].append(str(folder / path))
        columns["label"].append(path.parts[level])
    return {part: datasets.Dataset.from_dict(columns, features) for part, columns in splits.items()}


def _read_hub(path: str) -> Any:
    """Load a data set of the hub; ``path`` is ``user/set`` or ``user/set/configuration``."""
    owner, name, *configuration = path.split("/", 2)
    try:
        return datasets.load_dataset(f"{owner}/{name}", *configuration)
    except Exception as error:  # offline, missing, gated, several configurations: each library has its own errors
        raise DataError(
            f"the hub's data set {path!r} cannot be loaded ({type(error).__name__}: {error}). Check the name and the "
            "network; or put a copy in a folder laid out like the hub and name that folder as data.root or in "
            "HETEROFL_DATA; or use digits, which needs neither"
        ) from error


def _is_example(names: Sequence[str]) -> bool:
    """Return True if a table's column names are numbers but not ascending integers: its first line is then an example.

    A name such as ``5.1.1`` is a number too: if the first line has ``5.1`` twice, pandas gives the second column this
    name.
    """
    is_count = all(map(str.isdigit, names)) and all(int(name) < int(next_name) for name, next_name in pairwise(names))
    return not is_count and all(fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?[\d.]*", name, IGNORECASE) for name in names)


class _Table:
    """Columns of a split, with checks."""

    def __init__(self, split: datasets.Dataset, place: str) -> None:
        self.table, self.place = split.with_format("arrow")[:], place
        if not self.table.num_rows:
            raise DataError(f"{place}: there are no examples")
        names = self.table.column_names
        if wrong := [sign for sign in SEPARATORS if len(names) == 1 and sign in names[0]]:
            raise DataError(
                f"{place}: found one column, {names[0]!r}; expected columns separated by commas, not by {wrong[0]!r}"
            )

    def column(self, name: str) -> pa.ChunkedArray:
        if name not in self.table.column_names:
            raise self.error(f"no column {name}", "it, or another name")
        column = self.table.column(name)
        if column.null_count:
            raise DataError(
                f"{self.place}: {column.null_count} of {len(column)} values of column {name} are missing; fill them in"
            )
        return column

    def values(self, name: str, what: str) -> Values:
        column = self.column(name)
        values: Values = column.to_pylist()
        if not all(isinstance(value, int | str) for value in values):
            raise DataError(
                f"{self.place}: the {what} column {name} is of type {column.type}; expected whole numbers or texts: "
                "name another column (data.label, or natural-<column> in data.split)"
            )
        return values

    def numbers(self, names: Sequence[str], label: str) -> torch.Tensor:
        types = pa.types
        expected = f"an image column, or columns of numbers beside the label, {label} (data.label names another)"
        if not names:
            raise self.error("no column beside the label", expected)
        if _is_example(names) or _is_example(self.table.column_names):  # 1,2,0 may be an example with the label 0
            raise self.error("an example in place of names", "the names of the columns in the first line")
        numbers = []
        for name in names:
            column = self.column(name)
            if not any(fits(column.type) for fits in (types.is_integer, types.is_boolean, types.is_floating)):
                raise self.error(f"column {name} of type {column.type}", expected)
            if name.startswith(INDEXES):
                raise self.error(f"the row numbers of pandas, {name},", "a table without them (index=False)")
            numbers.append(torch.tensor(column.cast(pa.float64(), safe=False).to_numpy()))
            if not numbers[-1].isfinite().all():
                raise DataError(f"{self.place}: column {name} holds NaN or infinities; expected finite numbers")
        return torch.stack(numbers, dim=1)

    def error(self, actual: str, expected: str) -> DataError:
        return DataError(
            f"{self.place}: found {actual} among the columns {', '.join(self.table.column_names)}; expected "
            f"{expected}: rename or drop columns, or write a function and name it as module:function"
        )


def _read_split(split: datasets.Dataset, place: str, columns: Columns) -> Raw | Texts:
    """Return the inputs, labels and owners of a split.

    Without ``columns.label``, the label is the column ``label``, or else the only ``ClassLabel`` column, or else, in a
    table without images, a column such as ``Label``, or else the last column. A split becomes ``Texts`` if
    ``columns.text`` is set, or if it has a column ``text`` but no label and no images.
    """
    table, features = _Table(split, place), split.features
    if columns.owner == "":
        raise table.error("no known column of owners", "its name, as natural-<column> in data.split")
    owners = table.values(columns.owner, "owner") if columns.owner else None
    images = [name for name, feature in features.items() if _is_image(feature)]
    if len(images) > 1:
        raise table.error(f"{len(images)} image columns ({', '.join(images)})", "one")
    names = [name for name in features if name != columns.owner]
    stated = {name: feature.names for name in names if isinstance(feature := features[name], datasets.ClassLabel)}
    labels = [name for name in names if name.strip().lower() == "label"]
    is_text = not labels and getattr(features.get("text"), "dtype", "") in ("string", "large_string")
    if columns.text or (is_text and not (images or stated or columns.label)):
        return Texts(table.column(columns.text or "text").cast(pa.string()).to_pylist(), place, owners)
    if columns.label or "label" in features:  # the column of labels may be that of the owners
        label = columns.label or "label"
    elif len(stated) == 1:
        label = next(iter(stated))
    elif not stated and not images and len(names) > 1:
        label = [*labels, names[-1]][0]
    else:
        columns_found = f"{len(stated)} class columns ({', '.join(stated)})" if stated else "no class column"
        raise table.error(
            columns_found,
            "a column label, one named by data.label, a single one of type ClassLabel, or a folder whose images all "
            "lie in folders of classes (train and test are splits)",
        )
    values, classes = table.values(label, "label"), tuple(stated[label]) if label in stated else None
    if images:
        table.column(images[0])
        return Raw(_read_images(split, images[0], f"{place}, column {images[0]}"), values, classes, place, (), owners)
    inputs = tuple(name for name in names if name != label)
    return Raw(table.numbers(inputs, label), values, classes, place, inputs, owners)


def _is_image(feature: object) -> bool:
    is_struct = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
    return is_struct or isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") == "binary"


def _read_images(split: datasets.Dataset, name: str, place: str) -> torch.Tensor:
    """Return images of equal size in uint8, of shape (number, channels, height, width)."""
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    try:
        for image in split.cast_column(name, datasets.Image())[name]:
            if image.mode.startswith(("I", "F")):
                fault = f"found {image.mode} pixels, expected 8 bits a channel: convert the image"
                raise DataError(f"{place}, image {len(images)}: {fault}")
            images.append(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f"{place}: image {len(images) - 1} has (height, width, channels) {images[-1].shape}, the first one "
                    f"{images[0].shape}; expected all alike: scale them to one size and colour mode first"
                )
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}, image {len(images)}: this is no image that Pillow can read ({error})") from error
    pixels = torch.from_numpy(np.stack(images))
    return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
