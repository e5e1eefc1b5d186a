"""The types of settings: pydantic's, read strictly, with words for what is expected."""

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic.fields import FieldInfo

from heterofl_flwr.core.levels import Mix, rate_of
from heterofl_flwr.data import check_kind
from heterofl_flwr.errors import DECAY, ConfigError
from heterofl_flwr.federation.limits import REPLIES, MinReplies, reply_floor

Flat = bool | int | float | str
"""A value of a run config."""

AUTO = "auto"
"""Stands for the value that suits the data set; see ``presets``."""


class Group(BaseModel):
    """A group of settings. A key is in kebab-case, and a value has the very type of its setting."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
    )


def setting(default: Flat, help_: str) -> Any:
    """Declare a setting: its default, written as in a run config, and what it means."""
    return Field(default=default, description=help_)


def expected(field: FieldInfo) -> str:
    """Return what a setting can be, in words that follow "expected"."""
    words = next((own for own in field.metadata if isinstance(own, str)), None)
    if words is not None:
        return words
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(option or repr(option) for option in get_args(field.annotation))}"
    if field.annotation is bool:
        return "true or false"
    bounds = {name: getattr(own, name) for own in field.metadata for name in _BOUNDS if hasattr(own, name)}
    if field.annotation is int:
        return "an integer " + ("from {ge} to {le:,}" if "le" in bounds else "of {ge} or more").format(**bounds)
    return "a number " + " and ".join(_BOUNDS[name].format(value) for name, value in bounds.items())


_BOUNDS = {"ge": "of {:g} or more", "gt": "above {:g}", "le": "up to {:g}"}


def _split(value: object) -> tuple[str, ...]:
    """Read a list, which a run config, having none, holds as text with commas."""
    if not isinstance(value, str):
        raise ValueError
    return tuple(part.strip() for part in value.split(",")) if value.strip() else ()


def _split_integers(value: object) -> tuple[int, ...]:
    """Read integers; a single one may be bare."""
    parts = _split(str(value) if isinstance(value, int) else value)
    if not all(part.isdecimal() for part in parts):
        raise ValueError
    return tuple(map(int, parts))


def _split_levels(value: object) -> tuple[tuple[str, str], ...]:
    """Read levels by name."""
    cut = [part.partition("=") for part in _split(value)]
    pairs = tuple((name.strip(), text.strip()) for name, _, text in cut)
    if not all(name and rate_of(text) for name, text in pairs) or len(dict(pairs)) < len(pairs):
        raise ValueError
    return pairs


def _read_mix(value: object) -> Mix:
    if not isinstance(value, str):
        raise ValueError
    return Mix.parse(value)


def _read_level(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError
    rate_of(str(value))
    return str(value)


def _read_replies(value: object) -> MinReplies:
    try:
        return reply_floor("value", value)
    except ConfigError as error:
        raise ValueError from error


def _check_split(value: str) -> str:
    check_kind(value)
    return value


def _check_distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError
    return values


def _check_ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(set(values)) != list(values):
        raise ValueError
    return values


def matching(pattern: str) -> Any:
    """Declare text of which a pattern matches the whole."""
    return Field(pattern=f"^(?:{pattern})$")


_WITH_COMMAS = PlainSerializer(lambda values: ",".join(map(str, values)))
REFERENCE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
"""The pattern of ``module:name``."""

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1), f"a number of {DECAY}"]
PathText = Annotated[str, matching(r"[^\x00]*"), "a path, or '' for none"]
Reference = Annotated[str, matching(f"(?:{REFERENCE})?"), "'module:name', or '' for none"]
Replies = Annotated[MinReplies, PlainValidator(_read_replies), REPLIES]
Integers = Annotated[tuple[Count, ...], BeforeValidator(_split_integers), _WITH_COMMAS]
Ascending = Annotated[Integers, AfterValidator(_check_ascending)]
Names = Annotated[
    tuple[Annotated[str, matching(r"[\w.-]+(?::[\w.]+)?")], ...],
    BeforeValidator(_split),
    AfterValidator(_check_distinct),
    _WITH_COMMAS,
]
Patterns = Annotated[tuple[Annotated[str, matching(r"[\w.*?\[\]!-]+")], ...], BeforeValidator(_split), _WITH_COMMAS]
MixText = Annotated[
    Mix, PlainValidator(_read_mix), PlainSerializer(str), "a mix such as 'a1-b1-c1-d1-e1', 'a1-e9' or '1.0x1-0.3x9'"
]
SplitName = Annotated[
    str,
    AfterValidator(_check_split),
    "'iid', 'non-iid-2' (classes a client), 'dirichlet-0.3' or 'rotated-15' (degrees)",
]
Level = Annotated[str, BeforeValidator(_read_level), "a level such as 'c' or a rate such as '0.3'"]
Levels = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_split_levels),
    PlainSerializer(lambda pairs: ",".join(map("=".join, pairs))),
    "different names with a level each, such as 'phone=c,camera=a', or '' for none",
]
