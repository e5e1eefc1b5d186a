"""Groups of options: dataclasses in which an option's name, type, default, bounds and meaning stand once.

Strategies, clients and the settings of a run share them. An option's key in a run config is its name in kebab-case, or
its alias; one with ``exclude`` is no setting. What an option means is the text below it. Types are strict, so that no
text is taken for a number.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
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
"""How groups are read: by keys in kebab-case, of which none is unknown."""


def check(test: Callable[[Any], object]) -> AfterValidator:
    """Reject values that fail a test; what the test raises says more than that the value is not expected."""

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
Decay = Annotated[float, Strict(), Field(ge=0, lt=1), "a number of 0 or more, and less than 1"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def group(kind: type[Kind]) -> type[Kind]:
    """Make a class a group of options, which are given by name alone; a ``ConfigError`` names all that do not fit."""
    return _checked(dataclass(frozen=True, slots=True, kw_only=True, config=KEYS)(kind))


@dataclass_transform()
def with_options(kind: type[Kind]) -> type[Kind]:
    """Give a class options in the same way, in whose order they may be given; it may keep and change other things."""
    return _checked(dataclass(config=KEYS)(kind), ordered=True)


def _checked(kind: Any, *, ordered: bool = False) -> type[Any]:
    """Let the constructor of a pydantic dataclass raise our error; give its options the texts that they inherit."""
    construct = kind.__init__
    for name, option in kind.__pydantic_fields__.items():  # pydantic reads the texts of the class alone
        inherited = (getattr(base, "__pydantic_fields__", {}).get(name) for base in kind.__mro__[1:])
        option.description = option.description or next((own.description for own in inherited if own), None)

    @wraps(construct)
    def checked(self: object, *values: object, **options: object) -> None:
        names = list(specs(kind)) if ordered else []
        if len(values) > len(names):
            expected_names = f"at most {', '.join(names)}" if ordered else "options by name alone"
            raise TypeError(f"{kind.__name__}: found {values} without names; expected {expected_names}")
        try:
            construct(self, **dict(zip(names, values, strict=False)), **options)
        except ValidationError as error:
            raise _explain(kind, error) from error

    kind.__init__ = checked
    made: type[Any] = kind
    return made


def specs(kind: Any) -> dict[str, FieldInfo]:
    """Return the options of a group by name, as pydantic describes them."""
    return {own.name: kind.__pydantic_fields__[own.name] for own in fields(kind)}


def values(of: Any) -> dict[str, Any]:
    """Return the values of a group's options by name."""
    return {name: getattr(of, name) for name in specs(of)}


def is_group(value: object) -> bool:
    """Whether a value is a group of options."""
    return hasattr(type(value), "__pydantic_fields__")


def same(kind: Any, name: str) -> Any:
    """Return a field with the default and the text of another group's option."""
    option = specs(kind)[name]
    return Field(default=option.default, description=option.description)


def pick(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Return a group with those of the values given that are its options, such as the arguments of a function."""
    return kind(**{name: given[name] for name in specs(kind) if name in given})


def _explain(kind: Any, error: ValidationError) -> Exception:
    """Return the error that says of each option what was found and what is expected."""
    known = {key: own for name, own in specs(kind).items() for key in (name, str(own.alias))}
    faults: dict[str, str] = {}
    for one in error.errors(include_url=False):
        name, cause = str(next(iter(one["loc"]), "")), one.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            faults[name] = str(cause)
        elif one["type"] in ("missing", "unexpected_keyword_argument"):
            return TypeError(f"{kind.__name__}: {one['msg'].lower()}, {name}; it has {', '.join(specs(kind))}")
        else:
            faults.setdefault(name, f"{name} is {one['input']!r}, expected {expected(known[name])}")
    return ConfigError(f"{kind.__name__}: {'; '.join(faults[name] for name in (*known, '') if name in faults)}")


_BOUNDS = {"ge": "of {:g} or more", "gt": "above {:g}", "le": "up to {:g}", "lt": "less than {:g}"}


def expected(field: FieldInfo) -> str:
    """Return what an option can be, in words that follow "expected"."""
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
