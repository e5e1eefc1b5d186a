"""Groups of options: dataclasses with a type, default, bounds and description for each option.

The string below a field is its description. A field with ``exclude=True`` is not a setting of a run.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from heterofl_flwr.common.errors import ConfigError

Kind = TypeVar("Kind")

KEYS = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,
    arbitrary_types_allowed=True,
    populate_by_name=True,
    alias_generator=lambda name: name.replace("_", "-"),
    use_attribute_docstrings=True,
)
"""Pydantic's configuration of groups: keys in kebab-case; unknown keys are rejected."""


def check(test: Callable[[Any], object]) -> AfterValidator:
    """Return a pydantic validator that rejects values for which ``test`` is false."""

    def validate(value: Kind) -> Kind:
        if not test(value):
            raise ValueError
        return value

    return AfterValidator(validate)


Flag = Annotated[bool, Strict()]
Natural = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
NotNegative = Annotated[float, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0)]
Share = Annotated[float, Strict(), Field(gt=0, le=1)]
ShareOrNone = Annotated[float, Strict(), Field(ge=0, le=1)]
Interval = Annotated[int | str, check(lambda value: is_interval(value)), "rounds such as 10, or seconds such as '30s'"]
Decay = Annotated[float, Strict(), Field(ge=0, lt=1), "a number of 0 or more, and less than 1"]


def is_interval(value: object) -> bool:
    """Return True for a number of rounds, such as 10, or of seconds, such as '30s'."""
    if isinstance(value, str):
        return re.fullmatch(r"[1-9][0-9]*s", value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass_transform(kw_only_default=True, frozen_default=True)
def group(kind: type[Kind]) -> type[Kind]:
    """Class decorator for a frozen group of keyword-only options.

    Invalid values raise one ``ConfigError`` that lists all of them.
    """
    return _checked(dataclass(frozen=True, slots=True, kw_only=True, config=KEYS)(kind))


@dataclass_transform()
def with_options(kind: type[Kind]) -> type[Kind]:
    """Class decorator like ``group``, but the class is not frozen and its options can be positional."""
    return _checked(dataclass(config=KEYS)(kind), ordered=True)


def _checked(kind: Any, *, ordered: bool = False) -> type[Any]:
    construct = kind.__init__
    for name, option in specs(kind).items():  # pydantic reads only descriptions in the class itself
        inherited = (getattr(base, "__pydantic_fields__", {}).get(name) for base in kind.__mro__[1:])
        option.description = option.description or next((field.description for field in inherited if field), None)

    @wraps(construct)
    def checked(self: object, *values: object, **options: object) -> None:
        names = list(specs(kind)) if ordered else []
        if len(values) > len(names):
            expected_names = f"at most {', '.join(names)}" if ordered else "options by name alone"
            raise TypeError(f"{kind.__name__}: found {values} without names; expected {expected_names}")
        try:
            construct(self, **dict(zip(names, values, strict=False)), **options)
        except ValidationError as error:
            raise _explain(kind, error) from None

    kind.__init__ = checked
    made: type[Any] = kind
    return made


def specs(kind: Any) -> dict[str, FieldInfo]:
    """Return the pydantic field of each option of a group, by name."""
    options: dict[str, FieldInfo] = kind.__pydantic_fields__
    return options


def values(of: Any) -> dict[str, Any]:
    """Return the values of a group's options, by name."""
    return {name: getattr(of, name) for name in specs(of)}


def is_group(value: object) -> bool:
    """Return True if a value is a group of options."""
    return hasattr(type(value), "__pydantic_fields__")


def same(kind: Any, name: str) -> Any:
    """Return a pydantic field with the default and description of field ``name`` of class ``kind``."""
    option = specs(kind)[name]
    return Field(default=option.default, description=option.description)


def pick(kind: type[Kind], arguments: Mapping[str, Any]) -> Kind:
    """Make a group of class ``kind`` from ``arguments``; names that are not its options are ignored."""
    return kind(**{name: arguments[name] for name in specs(kind) if name in arguments})


def _explain(kind: Any, error: ValidationError) -> Exception:
    names = {str(field.alias): name for name, field in specs(kind).items()}
    faults: dict[str, str] = {}
    for entry in error.errors(include_url=False):
        name, *place = map(str, entry["loc"] or ("",))
        name, cause = names.get(name, name), entry.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            faults[name] = f"{name}: {cause}" if name else str(cause)
        elif entry["type"] in ("missing", "unexpected_keyword_argument"):
            near = [] if entry["type"] == "missing" else get_close_matches(name, specs(kind), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(specs(kind))}"
            return TypeError(f"{kind.__name__}: {entry['msg'].lower()}, {name}; {hint}")
        else:
            verb = "has" if any(part.isdigit() for part in place) else "is"  # an entry of a list, or the value itself
            faults.setdefault(name, f"{name} {verb} {entry['input']!r}, expected {expected(specs(kind)[name])}")
    return ConfigError(f"{kind.__name__}: {'; '.join(faults[name] for name in (*specs(kind), '') if name in faults)}")


_BOUNDS = {"ge": "of {:g} or more", "gt": "above {:g}", "le": "up to {:g}", "lt": "less than {:g}"}


def expected(field: FieldInfo) -> str:
    """Return a description of an option's valid values, such as "true or false"."""
    words = next((entry for entry in field.metadata if isinstance(entry, str)), None)
    if words is not None:
        return words
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(option or repr(option) for option in get_args(field.annotation))}"
    if field.annotation is bool:
        return "true or false"
    bounds = {name: getattr(entry, name) for entry in field.metadata for name in _BOUNDS if hasattr(entry, name)}
    if field.annotation is int:
        return "an integer " + ("from {ge} to {le:,}" if "le" in bounds else "of {ge} or more").format(**bounds)
    return "a number " + " and ".join(_BOUNDS[name].format(value) for name, value in bounds.items())
