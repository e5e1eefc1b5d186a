"""Types of settings, with descriptions of their values for error messages."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PlainValidator

from heterofl_flwr.common.address import split_address
from heterofl_flwr.common.options import KEYS, Count, check
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.data.splits import KINDS, check_kind
from heterofl_flwr.nn.depth import read_levels
from heterofl_flwr.settings.server_stages import parse_stages

Flat = bool | int | float | str
"""Type of a value in a run config."""

AUTO = "auto"
"""Placeholder for a value that follows from other settings, such as the data set; see ``auto_values.AUTOS``."""


class Group(BaseModel):
    """Base class of groups of settings. Text is not converted to numbers."""

    model_config = ConfigDict(strict=True, frozen=True, **KEYS)


def _split(value: object) -> tuple[str, ...]:
    """Split a text at its commas, because a run config cannot contain lists."""
    if isinstance(value, tuple):  # parsed already
        return value
    if not isinstance(value, str):
        raise ValueError
    parts = tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    if not all(parts):
        raise ValueError
    return parts


def _split_integers(value: object) -> tuple[int, ...]:
    parts = _split(str(value) if isinstance(value, int) else value)
    if not all(str(part).isdecimal() for part in parts):
        raise ValueError
    return tuple(map(int, parts))


_join = PlainSerializer(lambda values: ",".join(map(str, values)), return_type=str)
_different = check(lambda values: len(set(values)) == len(values))

Text = Annotated[str, "a text"]
Profile = Annotated[
    str, check(lambda name: name in ("", "edge") or ":" in name), "edge, 'module:function', or '' for none"
]
Address = Annotated[
    str,
    check(lambda text: [text and split_address(text)]),  # the function's error says what is wrong
    "host:port such as 127.0.0.1:9090, or '' for none",
]
Integers = Annotated[tuple[Count, ...], BeforeValidator(_split_integers), _join]
Widths = Annotated[Integers, "widths such as '64,128,256,512', or '' for the model's own"]
Rounds = Annotated[
    Integers,
    check(lambda values: sorted(set(values)) == list(values)),
    "ascending rounds such as '150,250', or '' for none",
]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split), _different, _join]
Architectures = Annotated[
    Texts, "different names such as 'cnn,mlp', each from this package or 'module:name'; '' for model.name"
]
Callbacks = Annotated[
    Texts, "different names such as 'tensorboard,wandb', each from this package or 'module:name'; '' for none"
]
Patterns = Annotated[Texts, "patterns of parameters such as 'hidden.*,output.bias', or '' for none"]
MixText = Annotated[
    Mix,
    PlainValidator(Mix.parse),
    PlainSerializer(str, return_type=str),
    "a mix such as 'a1-b1-c1-d1-e1', 'a1-e9' or '1.0x1-0.3x9'",
]
SplitName = Annotated[str, check(check_kind), KINDS]
Shrink = Annotated[
    str,
    check(lambda text: [read_levels(text)]),  # the function's error says what is wrong
    "'width', 'depth', or both by level as 'b=0.7:0.75,c=0.7:0.5' (width rate:depth rate)",
]
StagesText = Annotated[
    str,
    check(lambda text: [parse_stages(text, load=False)]),  # the function's error says what is wrong
    "names such as 'momentum(0.9), moving-average', 'adam(eta=0.1, tau=0.001)' or 'module:Class(2)', or '' for none",
]
