"""Read files: an offline copy of a hub's data set, parquet or CSV files, or images in folders named by class.

In a table, which column is which follows from the types, and from the features that the hub writes beside them. Those
are read here directly: loading ``datasets`` would cost each process a second and 100 MB.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from PIL import Image, UnidentifiedImageError
from pyarrow import csv, parquet

from heterofl_flwr.data.convert import Raw, Values
from heterofl_flwr.data.known import ANY, Columns
from heterofl_flwr.data.text import Texts, join_windows
from heterofl_flwr.errors import DataError

Read = TypeVar("Read")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"})
"""Files that are read as images."""

_SPLIT = re.compile(r"(train|test|valid)(ing|ation|set)?(?![a-z])")
"""How the names of files and folders begin that hold a split: ``train1``, ``test-00000``, ``validation_set``."""


def read_folder(folder: Path, columns: Columns = ANY) -> tuple[Raw | Texts, Raw | Texts | None]:
    """Return a folder's train split, and its test split if it has one. Nothing is written.

    Read are, in this order: images as ``train/<class>/*.png`` and ``test/<class>/*.png``; parquet files; CSV files.
    Of these, the name, or that of a folder above, begins with ``train`` or ``test``, and a split may lie in several;
    where none does, all of them are the train split. Hidden files and folders are not read.
    """
    if any(file.suffix.lower() in SUFFIXES for file in _visible(folder, "train/*/*")):
        if columns.label:
            raise DataError(f"{folder} holds images by class: found data.label={columns.label!r}, expected ''")
        parts = [path.name for path in _visible(folder, "*") if path.is_dir()]
        check_splits(str(folder), parts)
        return train_and_test(parts, lambda part: _read_images(folder / part))
    for suffix, read in _READERS.items():
        if files := _visible(folder, f"**/*{suffix}"):
            return _read_tables(folder, files, read, columns)
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    raise DataError(
        f"{folder} holds {found}; expected train/<class>/*.png and test/<class>/*.png, or train and test files as "
        ".parquet or .csv"
    )


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Return what matches below a folder, sorted, without what is hidden, such as the copies of a notebook server."""
    found = ((path, path.relative_to(folder).parts) for path in folder.glob(pattern))
    return sorted(path for path, parts in found if not any(part.startswith(".") for part in parts))


def _read_tables(
    folder: Path, files: Sequence[Path], read: Callable[[Path], pa.Table], columns: Columns
) -> tuple[Raw | Texts, Raw | Texts | None]:
    splits = _by_split(folder, files)

    def read_split(part: str) -> Raw | Texts:
        return read_table(_concatenate(folder, splits[part], read), str(splits[part][0]), columns)

    return train_and_test(splits, read_split)


def _by_split(folder: Path, files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Sort files by split; raise an error for a folder of several configurations."""
    configurations: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    others = []
    for file in files:
        parts = file.relative_to(folder).parts
        named = ((place, match[1]) for place, part in enumerate(parts) if (match := _SPLIT.match(part.lower())))
        if (first := next(named, None)) is None:
            others.append(file)
        else:
            place, split = first
            configurations["/".join(parts[:place])][split].append(file)
    if len(configurations) > 1:
        raise DataError(
            f"{folder} holds several data sets ({', '.join(sorted(configurations))}): name one of these folders"
        )
    if not configurations:
        return {"train": others}
    (splits,) = configurations.values()
    check_splits(str(folder), [*splits, *(file.name for file in others)])
    return splits


def check_splits(place: str, found: Sequence[str]) -> None:
    """Raise an error unless there are a train and a test split, or a train split and nothing else."""
    missing = [split for split in ("train", "test") if split not in found]
    if missing and list(found) != ["train"]:
        raise DataError(
            f"{place} has no {' and no '.join(missing)} split, only {', '.join(sorted(found)[:10])}: expected train "
            "and test, or train alone; a function can make them (module:function)"
        )


def train_and_test(found: Collection[str], read: Callable[[str], Read]) -> tuple[Read, Read | None]:
    """Return the train split, and the test split if it is there."""
    return read("train"), read("test") if "test" in found else None


def _concatenate(folder: Path, files: Sequence[Path], read: Callable[[Path], pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables([read(file) for file in files], promote_options="default")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise DataError(
            f"{folder}: {names} cannot be read ({error}); is the copy complete, and are the columns equal?"
        ) from error


def _read_csv(file: Path) -> pa.Table:
    """Read a CSV file; a first line of numbers only is data, not the columns' names."""
    whole = csv.ParseOptions(newlines_in_values=True)
    table = csv.read_csv(file, parse_options=whole)
    names = table.column_names  # raises a ValueError of its own kind where they are not text
    try:
        list(map(float, names))
    except ValueError:
        return table
    return csv.read_csv(file, csv.ReadOptions(autogenerate_column_names=True), whole)


_READERS: Mapping[str, Callable[[Path], pa.Table]] = {
    ".parquet": lambda file: parquet.ParquetFile(file).read(),
    ".csv": _read_csv,
}


def _read_images(folder: Path) -> Raw:
    """Read ``<folder>/<class>/*.png`` (or another kind of image); the folders' names are the classes."""
    files = [file for file in _visible(folder, "*/*") if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{folder}: there are no examples; expected images as {folder}/<class>/*.png")
    return Raw(_decode(files, len(files), str(folder)), [file.parent.name for file in files], None, str(folder))


def _decode(encoded: Iterable[bytes | Path], number: int, place: str) -> torch.Tensor:
    """Return ``number`` images of equal size as uint8 (number, channels, height, width).

    Grey images have one channel, all others become three: red, green, blue. A plain loop over Pillow reads MNIST's
    60,000 in two seconds; torchvision's decoder and threads are no faster for images that small.
    """
    images = np.empty((number, 0, 0, 0), dtype=np.uint8)
    for row, source in enumerate(encoded):
        pixels = _pixels(source, f"{place}, image {row}")
        if not row:
            images = np.empty((number, *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                f"{place}: image {row} has (height, width, channels) {pixels.shape}, the first one "
                f"{images.shape[1:]}; expected all alike: scale them to one size and colour mode first"
            )
        images[row] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _pixels(source: bytes | Path, place: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return one image (height, width, channels)."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
                raise DataError(f"{place}: found {image.mode} pixels, expected 8 bits a channel: convert the image")
            mode = "L" if image.mode in ("1", "L") else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: this is no image that Pillow can read ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def read_table(table: pa.Table, place: str, columns: Columns = ANY) -> Raw | Texts:
    """Return the split that a table holds.

    Unless ``columns`` names another, the label is the column ``label``, or else the only one whose feature is
    ``ClassLabel``, or else, in a table of numbers, the last. Inputs are the only image column, or all other columns. A
    table that has neither a label nor an image is a text if its column ``text`` is one.
    """
    _check_named(table, columns, place)
    features = _read_features(table)
    images = [field.name for field in table.schema if _is_image(field, features)]
    if len(images) > 1:
        raise _columns_error(table, place, f"{len(images)} image columns ({', '.join(images)})", "one")
    names = [str(name) for name in table.column_names if name != columns.owner]
    stated = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    if columns.text or (not (images or stated or columns.label) and _is_text(table, names)):
        return _read_texts(table, columns, place)
    label = columns.label or _find_label(table, names, stated, place, tabular=not images)
    inputs = images or [name for name in names if name != label]
    labels, owners = _read_values(table, label, "label", place), _read_owners(table, columns, place)
    classes = tuple(features.get(label, {}).get("names") or ()) or None
    _check_filled(table, inputs, place)
    if not images:
        return Raw(_read_numbers(table, inputs, place), labels, classes, place, tuple(inputs), owners)
    encoded = (
        value if isinstance(value, bytes) else Path(value["path"] or "") if value["bytes"] is None else value["bytes"]
        for value in table.column(images[0]).to_pylist()
    )
    pixels = _decode(encoded, table.num_rows, f"{place}, column {images[0]}")
    return Raw(pixels, labels, classes, place, owners=owners)


def _check_named(table: pa.Table, columns: Columns, place: str) -> None:
    """Raise an error for a table without examples, or without a column that is named."""
    if not table.num_rows:
        raise DataError(f"{place}: there are no examples")
    if columns.owner == "":
        raise _columns_error(table, place, "no known column of owners", "its name, as natural-<column> in data.split")
    for name in (columns.label, columns.owner, columns.text, columns.following):
        if name and name not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"{place}: found the columns {found}; expected one named {name}: name one of those found")


def _check_filled(table: pa.Table, names: Iterable[str], place: str) -> None:
    for name in names:
        _refuse_missing(table.column(name).null_count, table, name, place)


def _refuse_missing(missing: int, table: pa.Table, name: str, place: str) -> None:
    if missing:
        raise DataError(f"{place}: {missing} of {table.num_rows} values of column {name} are missing; fill them in")


def _read_features(table: pa.Table) -> Mapping[str, Mapping[str, Any]]:
    """Return what the hub states of the columns."""
    try:
        stated = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in stated.items() if isinstance(feature, dict)}
    except (AttributeError, KeyError, TypeError, ValueError):  # another program wrote the file
        return {}


def _is_image(field: pa.Field, features: Mapping[str, Mapping[str, Any]]) -> bool:
    if features.get(field.name, {}).get("_type") == "Image" or pa.types.is_binary(field.type):
        return True
    return bool(pa.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"})


def _is_text(table: pa.Table, names: Sequence[str]) -> bool:
    kind = table.schema.field("text").type if "text" in names and "label" not in names else None
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read_texts(table: pa.Table, columns: Columns, place: str) -> Texts:
    """Return the texts of a table, row by row; windows are joined, owner by owner."""
    names, owners = [columns.text or "text", *filter(None, [columns.following])], _read_owners(table, columns, place)
    _check_filled(table, names, place)
    texts = [table.column(name).cast(pa.string()).to_pylist() for name in names]
    if not columns.following:
        return Texts(texts[0], place, owners)
    joined, whose = join_windows(texts[0], texts[1], owners or [0] * table.num_rows)
    return Texts(joined, place, whose if owners else None, characters=True)


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
    kind = table.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    if not any(matches(kind) for matches in types):
        raise DataError(
            f"{place}: the {what} column {column} is of type {kind}; expected whole numbers or texts: name another "
            "column (data.label, or natural-<column> in data.split)"
        )
    values = table.column(column).to_pylist()
    _refuse_missing(sum(value is None or value == "" for value in values), table, column, place)  # '': a gap in a CSV
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
