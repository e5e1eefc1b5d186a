"""Read a split from an Arrow table: an image column and a label column, or columns of numbers and a label column.

Which column is which follows from the table's types, and from the features that the hub writes beside them. Those are
read here directly: loading ``datasets`` would cost each process a second and 100 MB.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from PIL import Image, UnidentifiedImageError

from heterofl_flwr.data.convert import Raw
from heterofl_flwr.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"})
"""Files that are taken for images."""

_GREY = frozenset({"1", "L"})
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L"})


def decode_images(encoded: Iterable[bytes | Path], number: int, place: str) -> torch.Tensor:
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


def read_image_folder(folder: Path) -> Raw:
    """Read ``<folder>/<class>/*.png`` (or another kind of image); the folders' names are the classes."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: there are no examples; expected images as {folder}/<class>/*.png")
    return Raw(decode_images(files, len(files), str(folder)), [file.parent.name for file in files], None, str(folder))


def _pixels(source: bytes | Path, place: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return one image (height, width, channels)."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode in _DEEP:
                raise DataError(f"{place}: found {image.mode} pixels, expected 8 bits a channel: convert the image")
            mode = "L" if image.mode in _GREY else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: this is no image that Pillow can read ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


_LABEL_TYPES = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
_NUMBER_TYPES = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)


def read_table(table: pa.Table, place: str) -> Raw:
    """Return the split that a table holds.

    The label is the column ``label``, or else the only one whose feature is ``ClassLabel``, or else, in a table of
    numbers, the last. Inputs are the only image column, or all other columns.
    """
    if not table.num_rows:
        raise DataError(f"{place}: there are no examples")
    features = _features(table.schema)
    images = [field.name for field in table.schema if _is_image(field, features)]
    if len(images) > 1:
        raise _unfit(table, place, f"{len(images)} image columns ({', '.join(images)})", "one")
    label = _label_column(table, features, place, tabular=not images)
    _check_whole(table, [label, *images], place)
    labels, names = _labels(table, label, features, place)
    if images:
        encoded = _encoded(table.column(images[0]))
        return Raw(decode_images(encoded, table.num_rows, f"{place}, column {images[0]}"), labels, names, place)
    columns = tuple(name for name in table.column_names if name != label)
    return Raw(_numbers(table, columns, place), labels, names, place, columns)


def _features(schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """Return what the hub's library wrote about the columns; nothing where another program wrote the file."""
    try:
        stated = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: feature for name, feature in stated.items() if isinstance(feature, dict)}


def _is_image(field: pa.Field, features: Mapping[str, Mapping[str, Any]]) -> bool:
    if features.get(field.name, {}).get("_type") == "Image" or pa.types.is_binary(field.type):
        return True
    return bool(pa.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"})


def _label_column(table: pa.Table, features: Mapping[str, Mapping[str, Any]], place: str, *, tabular: bool) -> str:
    names = [str(name) for name in table.column_names]
    if "label" in names:
        return "label"
    stated = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if len(stated) == 1:
        return stated[0]
    if not stated and tabular and len(names) > 1:
        return names[-1]
    found = f"{len(stated)} class columns ({', '.join(stated)})" if stated else "no class column"
    raise _unfit(table, place, found, "a column named label, or one only of type ClassLabel")


def _check_whole(table: pa.Table, columns: Sequence[str], place: str) -> None:
    for name in columns:
        missing = table.column(name).null_count
        if missing:
            raise DataError(f"{place}: {missing} of {table.num_rows} values of column {name} are missing; fill them in")


def _labels(
    table: pa.Table, column: str, features: Mapping[str, Mapping[str, Any]], place: str
) -> tuple[list[int] | list[str], tuple[str, ...] | None]:
    kind = table.schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(fits(kind) for fits in _LABEL_TYPES):
        raise DataError(
            f"{place}: the label column {column} is of type {kind}; expected whole numbers or texts: name the column "
            "of classes 'label'"
        )
    values = table.column(column).to_pylist()
    names = features.get(column, {}).get("names")
    return [int(value) if isinstance(value, bool) else value for value in values], tuple(names) if names else None


def _encoded(column: pa.ChunkedArray) -> Iterator[bytes | Path]:
    """Yield each image's bytes, or the file that holds it."""
    for value in column.to_pylist():
        content = value if isinstance(value, bytes) else value["bytes"]
        yield Path(value["path"]) if content is None else content


def _numbers(table: pa.Table, columns: Sequence[str], place: str) -> torch.Tensor:
    if not columns:
        raise _unfit(table, place, "no column beside the label", "an image column or columns of numbers")
    _check_whole(table, columns, place)
    for name in columns:
        kind = table.schema.field(name).type
        if not any(fits(kind) for fits in _NUMBER_TYPES):
            raise _unfit(table, place, f"column {name} of type {kind}", "an image column or columns of numbers")
    values = torch.stack(
        [torch.tensor(table.column(name).cast(pa.float32(), safe=False).to_numpy()) for name in columns], dim=1
    )
    if not values.isfinite().all():
        bad = [name for name, finite in zip(columns, values.isfinite().all(0).tolist(), strict=True) if not finite]
        raise DataError(f"{place}: column {bad[0]} holds NaN or infinities; expected finite numbers")
    return values


def _unfit(table: pa.Table, place: str, found: str, expected: str) -> DataError:
    return DataError(
        f"{place}: found {found} among the columns {', '.join(table.column_names)}; expected {expected}: rename or "
        "drop columns, or write a function and name it as module:function"
    )
