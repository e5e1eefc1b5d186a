"""Read a folder or a data set of the hub with Hugging Face's ``datasets``, and make tensors of it.

In a table, which column is which follows from the types, and from the features that ``datasets`` knows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from PIL import Image

from heterofl_flwr.data.convert import Raw, Values
from heterofl_flwr.data.known import ANY, Columns
from heterofl_flwr.data.text import Texts
from heterofl_flwr.errors import DataError

Splits = tuple[Raw | Texts, Raw | Texts | None]
"""The train split, and the test split if there is one."""


def read_folder(folder: Path, columns: Columns = ANY) -> Splits:
    """Return a folder's train split, and its test split if it has one. Nothing stays written.

    ``datasets`` finds what there is to read, images as ``train/<class>/*.png`` and ``test/<class>/*.png``, or parquet
    or CSV files, and of which split a file is. Hidden files and folders are not read.
    """
    with _cache() as cache:
        try:
            found = datasets.load_dataset(str(folder), cache_dir=cache)
        except Exception as error:  # no files, damaged ones, several configurations: each has errors of its own
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
            held = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
            raise DataError(
                f"{folder} cannot be read ({said}). It holds {held}; expected "
                f"train/<class>/*.png and test/<class>/*.png, or train and test files of equal columns as .parquet or "
                f".csv: is the copy complete?"
            ) from error
        return _read_splits(found, str(folder), columns)


@contextmanager
def _cache() -> Iterator[str]:
    """Yield a folder for what ``datasets`` writes, and remove it: nobody's data may lie about in a second place."""
    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        datasets.enable_progress_bars()


def read_hub(path: str, columns: Columns = ANY) -> Splits:
    """Return the splits of a data set of the hub, ``user/set`` or ``user/set/configuration``."""
    owner, name, *configuration = path.split("/", 2)
    try:
        found = datasets.load_dataset(f"{owner}/{name}", *configuration)
    except Exception as error:  # offline, missing, gated, several configurations: each library has its own errors
        raise DataError(
            f"the hub's data set {path!r} cannot be loaded ({type(error).__name__}: {error}). Check the name and the "
            "network; or put a copy in a folder laid out like the hub and name that folder as data.root or in "
            "HETEROFL_DATA; or use digits, which needs neither"
        ) from error
    return _read_splits(found, f"the hub's data set {path!r}", columns)


def _read_splits(found: Mapping[str, datasets.Dataset], place: str, columns: Columns) -> Splits:
    """Return the train split, and the test split if it is there; without it there may be no other."""
    missing = [split for split in ("train", "test") if split not in found]
    if missing and list(found) != ["train"]:
        raise DataError(
            f"{place} has no {' and no '.join(missing)} split, only {', '.join(sorted(found)[:10])}: expected train "
            "and test, or train alone; a function can make them (module:function)"
        )
    train = _read_split(found["train"], f"{place}, split train", columns)
    return train, _read_split(found["test"], f"{place}, split test", columns) if "test" in found else None


def _read_images(split: datasets.Dataset, name: str, place: str) -> torch.Tensor:
    """Return images of equal size as uint8 (number, channels, height, width).

    Grey images have one channel, all others become three: red, green, blue.
    """
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    try:
        for image in split.cast_column(name, datasets.Image())[name]:
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
                found = f"found {image.mode} pixels, expected 8 bits a channel: convert the image"
                raise DataError(f"{place}, image {len(images)}: {found}")
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


def _read_split(split: datasets.Dataset, place: str, columns: Columns) -> Raw | Texts:
    """Return the tensors of a split.

    Unless ``columns`` names another, the label is the column ``label``, or else the only one whose feature is
    ``ClassLabel``, or else, in a table of numbers, the last. Inputs are the only image column, or all other columns. A
    table that has neither a label nor an image is a text if its column ``text`` is one.
    """
    table, features = split.with_format("arrow")[:], split.features
    _check_named(table, columns, place)
    images = [field.name for field in table.schema if _is_image(field, features)]
    if len(images) > 1:
        raise _columns_error(table, place, f"{len(images)} image columns ({', '.join(images)})", "one")
    names = [str(name) for name in table.column_names if name != columns.owner]
    stated = {name: own.names for name in names if isinstance(own := features[name], datasets.ClassLabel)}
    is_text = "label" not in names and getattr(features.get("text"), "dtype", "") in ("string", "large_string")
    if columns.text or (is_text and not (images or stated or columns.label)):
        return _read_texts(table, columns, place)
    label = columns.label or _find_label(table, names, list(stated), place, tabular=not images)
    inputs = images or [name for name in names if name != label]
    labels, owners = _read_values(table, label, "label", place), _read_owners(table, columns, place)
    classes = tuple(stated[label]) if label in stated else None
    _check_filled(table, inputs, place)
    if not images:
        return Raw(_read_numbers(table, inputs, place), labels, classes, place, tuple(inputs), owners)
    pixels = _read_images(split, images[0], f"{place}, column {images[0]}")
    return Raw(pixels, labels, classes, place, owners=owners)


def _check_named(table: pa.Table, columns: Columns, place: str) -> None:
    """Raise an error for a table without examples, or without a column that is named."""
    if not table.num_rows:
        raise DataError(f"{place}: there are no examples")
    if columns.owner == "":
        raise _columns_error(table, place, "no known column of owners", "its name, as natural-<column> in data.split")
    for name in (columns.label, columns.owner, columns.text):
        if name and name not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"{place}: found the columns {found}; expected one named {name}: name one of those found")


def _check_filled(table: pa.Table, names: Iterable[str], place: str) -> None:
    for name in names:
        if missing := table.column(name).null_count:
            raise DataError(f"{place}: {missing} of {table.num_rows} values of column {name} are missing; fill them in")


def _is_image(field: pa.Field, features: Mapping[str, object]) -> bool:
    if isinstance(features[field.name], datasets.Image) or pa.types.is_binary(field.type):
        return True
    return bool(pa.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"})


def _read_texts(table: pa.Table, columns: Columns, place: str) -> Texts:
    """Return the texts of a table, row by row."""
    name = columns.text or "text"
    _check_filled(table, [name], place)
    return Texts(table.column(name).cast(pa.string()).to_pylist(), place, _read_owners(table, columns, place))


def _find_label(table: pa.Table, names: Sequence[str], stated: Sequence[str], place: str, *, tabular: bool) -> str:
    if "label" in names or len(stated) == 1:
        return "label" if "label" in names else stated[0]
    if not stated and tabular and len(names) > 1:
        return names[-1]
    found = f"{len(stated)} class columns ({', '.join(stated)})" if stated else "no class column"
    raise _columns_error(table, place, found, "a column named label or by data.label, or one only of type ClassLabel")


def _read_owners(table: pa.Table, columns: Columns, place: str) -> Values | None:
    return _read_values(table, columns.owner, "owner", place) if columns.owner else None


def _read_values(table: pa.Table, column: str, what: str, place: str) -> Values:
    """Return a column's values, which name classes or owners."""
    _check_filled(table, [column], place)
    values = table.column(column).to_pylist()
    if not all(isinstance(value, int | str) for value in values):
        raise DataError(
            f"{place}: the {what} column {column} is of type {table.schema.field(column).type}; expected whole numbers "
            "or texts: name another column (data.label, or natural-<column> in data.split)"
        )
    return [int(value) if isinstance(value, bool) else value for value in values]


def _read_numbers(table: pa.Table, columns: Sequence[str], place: str) -> torch.Tensor:
    expected, types = "an image column or columns of numbers", pa.types
    if not columns:
        raise _columns_error(table, place, "no column beside the label", expected)
    for name in columns:
        kind = table.schema.field(name).type
        if not (types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind)):
            raise _columns_error(table, place, f"column {name} of type {kind}", expected)
    numbers = [torch.tensor(table.column(name).cast(pa.float32(), safe=False).to_numpy()) for name in columns]
    for name, values in zip(columns, numbers, strict=True):
        if not values.isfinite().all():
            raise DataError(f"{place}: column {name} holds NaN or infinities; expected finite numbers")
    return torch.stack(numbers, dim=1)


def _columns_error(table: pa.Table, place: str, found: str, expected: str) -> DataError:
    return DataError(
        f"{place}: found {found} among the columns {', '.join(table.column_names)}; expected {expected}: rename or "
        "drop columns, or write a function and name it as module:function"
    )
